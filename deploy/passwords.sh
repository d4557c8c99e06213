#!/usr/bin/env bash
# Gives Roster's login roles their password, when PostgreSQL's image makes its cluster.
set -euo pipefail
for role in app directory worker migrator; do
  psql --set=ON_ERROR_STOP=1 --username=postgres --dbname="$POSTGRES_DB" --set=role="roster_$role" \
    --set=password="$ROSTER_PASSWORD" <<<"alter role :\"role\" password :'password'"
done
