/** How much an org may have. */
import { type Guard, inRoutine, inSource, sql } from "./guard.ts";

const inAdding = inRoutine("add_to_count");
const inBatches = inSource("src/services/org-member-batches.ts");

export const limits: readonly Guard[] = [
  inAdding(
    "nothing above the limit",
    "if held > allowed then\n    raise",
    "if false then\n    raise",
    "limits",
    "for one member more",
  ),
  inAdding(
    "expired members leave room",
    "if held > allowed and kind = 'members' then",
    "if false then",
    "limits",
    "counts no expired member",
  ),
  inAdding(
    "expired invitations leave room",
    "and i.state = 'PENDING' and i.expire_time <= now()",
    "and false",
    "limits",
    "for one pending invitation more",
  ),
  inAdding(
    "a count is one org's",
    "where c.org_id = org\n",
    "where c.org_id = (select o.id from roster.orgs o where o.id <> org limit 1)\n",
    "limits",
    "is one org's alone",
  ),
  inRoutine("room_for")(
    "a batch is told of the room that there is",
    "select l.members - c.members + roster.expired_members(), l.members",
    "select l.members, l.members",
    "limits",
    "as many of a batch as there is room for",
  ),
  inBatches(
    "a batch with less room by then is sorted anew",
    '.catch(askedAnew("ORG_LIMIT_REACHED"))',
    "",
    "limits",
    "as many members or invitations as there is room for by then",
  ),
  inSource("src/services/invitation-batches.ts")(
    "a batch with less room by then is sorted anew",
    '  "ORG_LIMIT_REACHED",\n',
    "",
    "limits",
    "as many members or invitations as there is room for by then",
  ),
  inBatches(
    "who went while it waited leaves room",
    "if (sorted.isFull)",
    "if (false)",
    "limits",
    "fills the room that they leave",
  ),
  inBatches(
    "room that was kept is not lost",
    "if (rows.length < addable.size)",
    "if (false)",
    "limits",
    "fills the room that it kept for them",
  ),
  inBatches(
    "who is over from the first takes no room",
    "verdict.is_over ? 0 : 1",
    "1",
    "limits",
    "counts nobody of a batch whose membership is over from the first",
  ),
  sql(
    "what is sent again needs room anew",
    "drop trigger invitations_count_renewed on roster.invitations",
    "limits",
    "expired ones leave room, and need it again",
  ),
  sql(
    "what is sent again in the place of another needs room anew",
    `create or replace trigger invitations_count_renewed after update on roster.invitations
       for each row when (old.state = 'PENDING' and new.state = 'PENDING' and old.expire_time <= now()
         and new.expire_time > now())
       execute function roster.count_renewed('pending_invitations')`,
    "limits",
    "expired ones leave room, and need it again",
  ),
  sql(
    "what comes back is counted",
    "drop trigger teams_count_update on roster.teams",
    "limits",
    "made or brought back",
  ),
  sql(
    "roles are counted",
    "drop trigger roles_count_insert on roster.roles",
    "limits",
    "refuses one role of the org's own more",
  ),
  inRoutine("count_former_members")(
    "a member who is gone is counted off once",
    "and u.delete_time is null",
    "",
    "counts",
    "just once",
  ),
];
