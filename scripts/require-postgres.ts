/** Refuses, in one sentence, unless TEST_DATABASE_URL leads to a PostgreSQL of the major version given. */
import pg from "pg";

const [major = ""] = process.argv.slice(2);

const versionOf = async (url: string): Promise<string> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  try {
    await client.connect();
    const { rows } = await client.query("select current_setting('server_version') as version");
    await client.end();
    return rows[0].version;
  } catch (error) {
    return `one that cannot be asked (${(error as Error).message})`;
  }
};

const url = process.env.TEST_DATABASE_URL;
const found = url ? await versionOf(url) : "not set";
if (found.split(".")[0] !== major) {
  console.error(
    `TEST_DATABASE_URL must be a superuser's login to a PostgreSQL ${major}; it is ${found}.`,
  );
  process.exitCode = 1;
}
