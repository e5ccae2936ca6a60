-- The least rights that the function's role needs. The role must exist. Run this as the owner of the tables, after
-- schema.sql, at every upgrade:
--   psql "$OWNER_URL" -v ON_ERROR_STOP=1 -v role=reconciler -f infra/grants.sql
-- Safe to run again, and while cycles run and a backup reads: GRANT locks a table no more than a SELECT does.

-- The platform's tables: columns, not tables. The flip is the only thing that writes there.
GRANT SELECT (id, status, runtime, instance_id, last_heartbeat_at, updated_at) ON workspaces TO :"role";
GRANT UPDATE (status, updated_at) ON workspaces TO :"role";
GRANT INSERT (event_type, workspace_id, payload) ON structure_events TO :"role";

-- The reconciler's own.
GRANT USAGE ON SCHEMA reconciler TO :"role";
GRANT SELECT ON reconciler.schema_version TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.lease TO :"role";
GRANT SELECT, UPDATE ON reconciler.coverage TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.doubts TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.source_doubts TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.restarts TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.restart_stops TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.holds TO :"role";
