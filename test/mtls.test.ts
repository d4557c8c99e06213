/** Callers by client certificate: whom the file of SPIFFE ids lets in, what they may, and a token beside it. */
import { once } from "node:events";
import tls from "node:tls";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { certify, makeAuthority } from "./certificates.ts";
import { type Encrypted, ports, startEncrypted } from "./encrypted.ts";
import { refusal, type Tenant, tokenFor, useHarness } from "./harness.ts";

const data = useHarness();
const id = "spiffe://example.org/ns/prod/web";
const longest = `spiffe://example.org/${"x".repeat(107)}`;

let mine: Tenant;
let other: Tenant;
beforeAll(async () => {
  mine = await data.current.tenant();
  other = await data.current.tenant();
});

const scope = ["teams.get", "members.get"];

describe.each(ports)("a client certificate at the %s port", (port) => {
  test("makes its holder a service with the permissions and orgs of the list", async () => {
    const encrypted = await startEncrypted(data.current, [
      { id, scope, orgs: [mine.orgId.toUpperCase()] },
      { id: longest, scope: ["org.get", "users.get"], orgs: "*" },
    ]);
    const web = encrypted.as(port, encrypted.service(id));
    const caller = await web.users.getCaller({});
    expect(caller).toMatchObject({ subject: `service:${id}`, onBehalfOf: [] });
    await web.teams.listTeams({});
    expect(await refusal(web.orgs.getOrg({}))).toMatchObject({ reason: "PERMISSION_MISSING" });
    const foreign = await refusal(web.teams.listTeams({ orgId: other.orgId }));
    expect(foreign).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });

    const free = encrypted.as(port, encrypted.service(longest));
    for (const { orgId } of [mine, other])
      expect((await free.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
    expect((await free.users.getUser({ userId: mine.ownerId })).user?.id).toBe(mine.ownerId);
  });

  test("UNAUTHENTICATED for everyone else, with a good token as without where a CA vouches for it", async () => {
    const encrypted = await startEncrypted(data.current, [{ id, scope, orgs: "*" }]);
    const { clients } = encrypted;
    const stranger = makeAuthority("strangers");
    const invalid = "CERTIFICATE_INVALID";
    const cases = [
      ["no certificate", undefined, "CREDENTIAL_MISSING", "OK"],
      ["another CA's", certify(stranger, { uris: [id] }), "CREDENTIAL_MISSING", "OK"],
      ["the server's CA's", certify(encrypted.root, { uris: [id] }), "CREDENTIAL_MISSING", "OK"],
      ["expired", certify(clients, { uris: [id], expiresMs: -60_000 }), "CREDENTIAL_MISSING", "OK"],
      ["no URI", certify(clients), invalid, invalid],
      ["two SPIFFE URIs", certify(clients, { uris: [id, longest] }), invalid, invalid],
      ["the same one twice", certify(clients, { uris: [id, id] }), invalid, invalid],
      ["a URI beside it", certify(clients, { uris: [id, "https://x.example"] }), invalid, invalid],
      ["no SPIFFE id", certify(clients, { uris: ["https://x.example/a"] }), invalid, invalid],
      [
        "one without a path",
        certify(clients, { uris: ["spiffe://example.org"] }),
        invalid,
        invalid,
      ],
      ["a list in one", certify(clients, { uris: [`${id}, URI:${id}`] }), invalid, invalid],
      ["dots", certify(clients, { uris: [`${id}/../web`] }), invalid, invalid],
      ["a CA's own", certify(clients, { uris: [id], authority: true }), invalid, invalid],
      [
        "an unknown id",
        certify(clients, { uris: [`${id}2`] }),
        "CERTIFICATE_UNKNOWN",
        "CERTIFICATE_UNKNOWN",
      ],
    ] as const;
    const { token } = data.current.ops;
    const answer = async (shown: Parameters<Encrypted["as"]>[1]): Promise<string> => {
      const call = encrypted.as(port, shown).users.getCaller({});
      const refused = await call.then(
        () => undefined,
        (error: unknown) => refusal(Promise.reject(error)),
      );
      if (refused && refused.code !== "Unauthenticated")
        return `${refused.code} ${refused.message}`;
      return refused?.reason ?? "OK";
    };
    const answers = await Promise.all(
      cases.map(async ([what, certified]) => {
        const shown = certified ? { certified } : {};
        return [what, await answer(shown), await answer({ ...shown, token })];
      }),
    );
    // One that only says to be of the right CA does not even connect.
    const forged = certify(makeAuthority("clients"), { uris: [id] });
    if (port === "HTTP") expect(await answer({ certified: forged, token })).not.toBe("OK");
    expect(answers).toEqual(cases.map(([what, , alone, beside]) => [what, alone, beside]));
  });

  test("beside a token brings its service on record, and the token says who calls", async () => {
    const encrypted = await startEncrypted(data.current, [
      { id, scope: ["roster.platform"], orgs: [mine.orgId] },
    ]);
    const shown = encrypted.service(id);
    const act = { sub: "service:edge" };
    const token = await tokenFor(mine.memberId, { claims: { act } });
    const member = encrypted.as(port, { ...shown, token });
    expect(await member.users.getCaller({})).toMatchObject({
      subject: mine.memberId,
      onBehalfOf: [`service:${id}`, "service:edge"],
    });
    // What the service may is not the user's.
    const team = { orgId: mine.orgId, name: `By ${port}` };
    expect((await refusal(member.orgs.deleteOrg({ orgId: mine.orgId }))).reason).toBe(
      "PERMISSION_MISSING",
    );
    const owner = encrypted.as(port, { ...shown, token: await tokenFor(mine.ownerId) });
    await owner.teams.createTeam({ team });
    const { auditEntries } = await mine.owner.audit.listAuditEntries({
      orgId: mine.orgId,
      pageSize: 1,
    });
    expect(auditEntries[0]?.actor).toMatchObject({
      subject: mine.ownerId,
      onBehalfOf: [`service:${id}`],
    });
    // Nor is another org, of which the user is a member, the service's.
    const elsewhere = await tokenFor(other.ownerId);
    const pinned = await tokenFor(other.ownerId, { org: other.orgId });
    for (const away of [elsewhere, pinned]) {
      const { teams } = encrypted.as(port, { ...shown, token: away });
      const refused = await refusal(teams.listTeams({ orgId: other.orgId }));
      expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
    }
    const garbage = encrypted.as(port, { ...shown, token: "garbage" });
    expect((await refusal(garbage.users.getCaller({}))).reason).toBe("CREDENTIAL_INVALID");
  });
});

describe("the file of SPIFFE ids", () => {
  test("lets a service of several orgs select one of them for each call, and nothing outside", async () => {
    const third = await data.current.tenant();
    const encrypted = await startEncrypted(data.current, [
      { id, scope: ["roster.platform", "users.get"], orgs: [mine.orgId, other.orgId] },
    ]);
    const { users, orgs, teams } = encrypted.as("gRPC", encrypted.service(id));
    for (const { orgId } of [mine, other]) {
      await teams.createTeam({ team: { orgId, name: "By certificate" } });
      expect((await orgs.getOrg({ orgId })).org?.id).toBe(orgId);
    }
    expect((await users.getCaller({})).subject).toBe(`service:${id}`);
    const { orgId } = third;
    expect((await refusal(orgs.getOrg({ orgId }))).reason).toBe("ORG_NOT_ALLOWED");
    expect((await refusal(users.getUser({ userId: mine.ownerId, orgId }))).reason).toBe(
      "ORG_NOT_ALLOWED",
    );
    const outside = [
      orgs.getOrg({}),
      orgs.listOrgs({}),
      users.listUsers({}),
      users.getUser({ userId: third.ownerId }),
      users.deleteUser({ userId: third.ownerId }),
      orgs.createOrg({ org: { name: "X", slug: "by-certificate" }, ownerUserId: third.ownerId }),
      orgs.purgeOrg({ orgId: mine.orgId }),
    ];
    for (const refused of await Promise.all(outside.map(refusal)))
      expect(refused.reason).toBe("ORG_REQUIRED");
    // Nor does an org that it may select open what lies outside.
    const headers = { "roster-org-id": mine.orgId };
    const beside = [
      users.deleteUser({ userId: third.ownerId }, { headers }),
      orgs.listOrgs({}, { headers }),
      orgs.purgeOrg({ orgId: third.orgId }, { headers }),
    ];
    for (const refused of await Promise.all(beside.map(refusal)))
      expect(refused.reason).toBe("PERMISSION_MISSING");
  });

  test("is read anew: an id is let in, another no longer, and a broken file changes nothing", async () => {
    const encrypted = await startEncrypted(data.current, [{ id, scope, orgs: "*" }]);
    const late = `${id}/late`;
    const answerTo = async (whom: string): Promise<string> =>
      encrypted
        .as("gRPC", encrypted.service(whom))
        .users.getCaller({})
        .then(
          () => "OK",
          async (error: unknown) => (await refusal(Promise.reject(error))).reason,
        );
    expect([await answerTo(id), await answerTo(late)]).toEqual(["OK", "CERTIFICATE_UNKNOWN"]);
    encrypted.allow([{ id: late, scope, orgs: "*" }]);
    await expect.poll(() => answerTo(late)).toBe("OK");
    expect(await answerTo(id)).toBe("CERTIFICATE_UNKNOWN");
    encrypted.write("allowed.json", '{"identities":[{"id":"web","scope":[],"orgs":[]}],"x":1}');
    await expect.poll(() => encrypted.complaints()).toHaveLength(1);
    expect(encrypted.complaints()[0]).toMatch(/identities\.0\.id: .*identities\.0\.orgs: .*"x"/);
    expect(await answerTo(late)).toBe("OK");
  });

  test("new CAs of clients count from the next connection on, resumed sessions included", async () => {
    const encrypted = await startEncrypted(data.current, [{ id, scope, orgs: "*" }]);
    const { certified } = encrypted.service(id);
    const connect = async (session?: Buffer) => {
      const socket = tls.connect({
        host: "127.0.0.1",
        port: encrypted.portOf("HTTP"),
        ca: encrypted.root.certificate,
        cert: certified.certificate,
        key: certified.key,
        ...(session ? { session } : {}),
      });
      onTestFinished(() => void socket.destroy());
      const tickets: Buffer[] = [];
      socket.on("session", (ticket: Buffer) => void tickets.push(ticket));
      await once(socket, "secureConnect");
      socket.write(
        "POST /roster.v1.UserService/GetCaller HTTP/1.1\r\nhost: x\r\n" +
          "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
      );
      const [answer] = (await once(socket, "data")) as [Buffer];
      return { tickets, status: String(answer).split(" ")[1], resumed: socket.isSessionReused() };
    };
    const first = await connect();
    expect(first.status).toBe("200");
    expect(await connect(first.tickets[0])).toMatchObject({ status: "200", resumed: true });
    encrypted.write("clients.pem", makeAuthority("clients").certificate);
    await expect.poll(async () => (await connect(first.tickets[0])).status).toBe("401");
    expect(await connect(first.tickets[0])).toMatchObject({ status: "401", resumed: false });
  });
});
