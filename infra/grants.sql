-- The least rights that the function's role needs. The role must exist. Run this as the owner of the tables, after
-- schema.sql, at every upgrade:
--   psql "$OWNER_URL" -v ON_ERROR_STOP=1 -v role=reconciler -f infra/grants.sql
-- Safe to run again, and while cycles run and a backup reads: GRANT locks a table no more than a SELECT does.
--
-- It finds the platform's tables by the path of whoever runs it, and warns about what else the role may do.

SET reconciler.role = :"role";

DO $grants$
DECLARE
    -- Looked up on that path, as is the first statement: so everything has its schema.
    path             CONSTANT pg_catalog.name[] := pg_catalog.current_schemas(false);
    grantee          CONSTANT pg_catalog.name := pg_catalog.current_setting('reconciler.role');
    workspaces       pg_catalog.regclass;
    structure_events pg_catalog.regclass;
    warnings         pg_catalog.text[];
    warning          pg_catalog.text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = grantee) THEN  -- "public" would be everybody
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('role %I does not exist', grantee);
    END IF;
    SELECT (array_agg(pg_class.oid ORDER BY array_position(path, nspname)) FILTER (WHERE relname = 'workspaces'))[1],
           (array_agg(pg_class.oid ORDER BY array_position(path, nspname)) FILTER (WHERE relname = 'structure_events'))[1]
    INTO workspaces, structure_events
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = ANY (path) AND relpersistence <> 't';
    IF workspaces IS NULL OR structure_events IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_table',
            MESSAGE = format('relation "%s" does not exist',
                             CASE WHEN workspaces IS NULL THEN 'workspaces' ELSE 'structure_events' END);
    END IF;

    -- The platform's tables: columns, not tables. The flip is the only thing that writes there.
    EXECUTE format('GRANT SELECT (id, status, runtime, instance_id, last_heartbeat_at, updated_at) ON %s TO %I',
                   workspaces, grantee);
    EXECUTE format('GRANT UPDATE (status, updated_at) ON %s TO %I', workspaces, grantee);
    EXECUTE format('GRANT INSERT (event_type, workspace_id, payload) ON %s TO %I', structure_events, grantee);

    -- What would let somebody with the role's password do more than the reconciler does.
    SELECT array_agg(format('the role %s %s', grantee, can) ORDER BY can COLLATE "C") INTO warnings
    FROM (
        SELECT format(power, CASE WHEN rolname = grantee THEN '' ELSE format(' as %s, of which it is a member', rolname) END)
        FROM pg_roles
        CROSS JOIN LATERAL (VALUES
            (rolsuper, 'is a superuser%s'),
            (rolbypassrls, 'may bypass row-level security%s'),
            (rolcreaterole, 'may create roles%s'),
            (rolcreatedb, 'may create databases%s'),
            (rolreplication, 'may replicate the whole server%s')
        ) AS powers (has, power)
        WHERE has AND pg_has_role(grantee, oid, 'MEMBER')
        UNION ALL
        SELECT format('is a member of %s', rolname) FROM pg_roles
        WHERE rolname LIKE 'pg\_%' AND pg_has_role(grantee, oid, 'MEMBER')
        UNION ALL
        SELECT format('owns table %s', oid::regclass) FROM pg_class
        WHERE (oid IN (workspaces, structure_events) OR relkind = 'r' AND relnamespace = to_regnamespace('reconciler'))
          AND pg_has_role(grantee, relowner, 'MEMBER')
        UNION ALL
        SELECT format('may create triggers on %s', regclass) FROM unnest(ARRAY[workspaces, structure_events]) AS regclass
        WHERE has_table_privilege(grantee, regclass, 'TRIGGER')
        UNION ALL
        SELECT format('may create in schema %s', nspname) FROM pg_namespace
        WHERE nspname !~ '^pg_(temp|toast)' AND has_schema_privilege(grantee, oid, 'CREATE')
        UNION ALL
        SELECT format('may create schemas in database %s', datname) FROM pg_database
        WHERE datname = current_database() AND has_database_privilege(grantee, oid, 'CREATE')
    ) AS found (can)
    -- To a superuser, everything applies.
    WHERE can = 'is a superuser' OR NOT (SELECT rolsuper FROM pg_roles WHERE rolname = grantee);
    FOREACH warning IN ARRAY COALESCE(warnings, '{}') LOOP
        RAISE WARNING USING MESSAGE = warning, HINT = 'See docs/deploy.md, "What the role should not have".';
    END LOOP;
    PERFORM set_config('reconciler.warnings', array_to_json(COALESCE(warnings, '{}'))::text, true);  -- for the installer
END
$grants$;

RESET reconciler.role;

-- The reconciler's own.
GRANT USAGE ON SCHEMA reconciler TO :"role";
GRANT SELECT ON reconciler.schema_version TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.lease TO :"role";
GRANT SELECT, UPDATE ON reconciler.coverage TO :"role";  -- UPDATE: the previous release keeps its coverage there
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.shard_coverage TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.doubts TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.source_doubts TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.restarts TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.restart_stops TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON reconciler.holds TO :"role";
