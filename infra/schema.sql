-- The reconciler's own state, in a schema of its own. The platform's tables are not touched.
--
--   psql "$OWNER_URL" -v ON_ERROR_STOP=1 -f infra/schema.sql
--
-- Creates the schema, or upgrades it and keeps its data. Run it again at every upgrade, then run grants.sql.
--
-- It is safe while cycles run and while a backup reads:
--   * All of it happens, or nothing. It is one statement, so this holds for psql, too.
--   * With nothing to change it only reads. It makes nobody wait, and a backup does not make it wait.
--   * To change something it needs the tables for itself. It never queues for them: a queue would hold up the cycles.
--     It tries again for 2 seconds, then it gives up and says so.
--   * It never downgrades: a schema that is newer than this file is left alone.
--   * It runs nothing of anybody else's: a schema `reconciler` that is not only ours is refused, whoever prepared it.
--
-- To add version 4, set `newest` to 4, write step 4 below step 3, and add new tables to `own_tables`.
--   * A step must be safe to run twice (IF NOT EXISTS and the like): a schema that lost a table goes through all steps.
--   * The previous release must be able to go on working: add tables and columns, but keep what it uses.
--   * Once the code cannot do without the step, raise its SCHEMA_VERSION (rights.py).

DO $schema$
DECLARE
    newest     CONSTANT integer := 3;
    own_tables CONSTANT pg_catalog.text[] := '{schema_version, lease, coverage, shard_coverage, doubts, '
                                             'source_doubts, restarts, restart_stops, holds, workspace_restarts}';
    give_up_at pg_catalog.timestamptz;
    strange    pg_catalog.text;
    bounded    pg_catalog.record;
    installed  integer := 0;  -- 0: nothing, or a schema from before there was a version number
    existing   pg_catalog.text;
    unwatched  boolean;
    highest_id bigint;
BEGIN
    -- Nothing that the path of whoever runs this would find first is used; the types above are looked up before this
    -- line. Both settings last until the end of this transaction.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('lock_timeout', '2s', true);
    give_up_at := clock_timestamp() + interval '2 seconds';
    -- One installer at a time. Cycles and backups do not know this lock.
    PERFORM pg_advisory_xact_lock(hashtext('reconciler.schema_version'));

    -- 1. Is the schema ours alone? Whoever owns a part of it, or may add one, could have statements of their own run in
    -- the name of whoever runs this.
    IF to_regnamespace('reconciler') IS NULL THEN
        CREATE SCHEMA reconciler;  -- from here on, nobody else can
        FOR strange IN  -- whom default privileges let add to it
            SELECT format('REVOKE CREATE ON SCHEMA reconciler FROM %s',
                          CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
            FROM pg_namespace, aclexplode(nspacl)
            WHERE nspname = 'reconciler' AND privilege_type = 'CREATE' AND grantee <> nspowner
        LOOP
            EXECUTE strange;
        END LOOP;
    END IF;
    WITH RECURSIVE ours (role) AS (
        SELECT oid FROM pg_roles WHERE rolname = current_user
        -- Alone, pg_has_role would not do: a superuser has every role. Nor would the membership: whoever creates a role
        -- is a member without its rights.
        UNION SELECT roleid FROM ours JOIN pg_auth_members ON member = role AND pg_has_role(roleid, 'USAGE')
    ), owned (catalog, object, schema, owner) AS (
        SELECT 'pg_namespace'::regclass, oid, oid, nspowner FROM pg_namespace
        UNION ALL SELECT 'pg_class'::regclass, oid, relnamespace, relowner FROM pg_class
        UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, proowner FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace, typowner FROM pg_type
        UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace, oprowner FROM pg_operator
    ), relation (object, rights) AS (
        SELECT oid, relacl FROM pg_class WHERE relnamespace = to_regnamespace('reconciler')
    ), part (catalog, object) AS (  -- what takes part in statements on our relations
        SELECT 'pg_class'::regclass, object FROM relation
        UNION ALL SELECT 'pg_trigger'::regclass, oid FROM pg_trigger JOIN relation ON object = tgrelid
        UNION ALL SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite JOIN relation ON object = ev_class
        UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef JOIN relation ON object = adrelid
        UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint JOIN relation ON object = conrelid
        UNION ALL SELECT 'pg_policy'::regclass, oid FROM pg_policy JOIN relation ON object = polrelid
    ), whose (what, role) AS (
        SELECT pg_describe_object(catalog, object, 0), owner FROM owned WHERE schema = to_regnamespace('reconciler')
        UNION
        SELECT concat(pg_describe_object(refclassid, refobjid, 0), ', which ',
                      pg_describe_object(part.catalog, part.object, 0), ' uses'), owner
        FROM part
        JOIN pg_depend ON classid = part.catalog AND objid = part.object
        JOIN owned ON owned.catalog = refclassid AND owned.object = refobjid
        WHERE refclassid IN ('pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass)
          AND schema <> to_regnamespace('reconciler') AND owner NOT IN (SELECT oid FROM pg_roles WHERE rolsuper)
        UNION
        SELECT 'the right CREATE on schema reconciler', grantee
        FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'reconciler' AND privilege_type = 'CREATE'
        UNION  -- a foreign key that cascades runs the triggers of the other table
        SELECT concat(pg_describe_object('pg_class'::regclass, conrelid, 0), ', which refers to ',
                      pg_describe_object('pg_class'::regclass, confrelid, 0)), owner
        FROM pg_constraint JOIN relation ON relation.object = confrelid
        JOIN owned ON catalog = 'pg_class'::regclass AND owned.object = conrelid
        UNION
        SELECT concat('the right ', privilege_type, ' on ', pg_describe_object('pg_class'::regclass, object, 0)), grantee
        FROM (SELECT object, rights FROM relation
              UNION ALL SELECT attrelid, attacl FROM pg_attribute JOIN relation ON object = attrelid) AS given,
             aclexplode(rights)
        WHERE privilege_type IN ('TRIGGER', 'REFERENCES')
    )
    SELECT string_agg(concat(what, ' (', COALESCE(rolname, 'PUBLIC'), ')'), '; ') INTO strange
    FROM (SELECT what, rolname FROM whose LEFT JOIN pg_roles ON oid = role WHERE role NOT IN (SELECT role FROM ours)
          ORDER BY what LIKE 'schema %' DESC, what COLLATE "C" LIMIT 9) AS first;
    IF strange IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('nothing was changed: the schema reconciler is not only ours (%s). These roles could have '
                             'anything done in the name of %s. See docs/deploy.md', strange, current_user);
    END IF;

    -- 2. What is there? If nothing is to be done, stop here.
    IF to_regclass('reconciler.schema_version') IS NOT NULL THEN
        installed := COALESCE((SELECT version FROM reconciler.schema_version), 0);
    END IF;
    IF installed > newest THEN
        RAISE NOTICE 'schema reconciler: version % is newer than this file (%), nothing was changed', installed, newest;
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM unnest(own_tables) AS own (name) WHERE to_regclass('reconciler.' || name) IS NULL) THEN
        installed := 0;
    END IF;
    -- Logical replication copies rows to another server, but not how far their ids have been given out there.
    IF to_regclass('reconciler.restarts') IS NOT NULL THEN
        -- A forged row may have any id. None of ours ever gets so high.
        highest_id := (SELECT max(id) FROM reconciler.restarts WHERE id < 1000000000000000);
        IF highest_id >= (SELECT COALESCE(last_value + 1, start_value) FROM pg_sequences
                          WHERE format('%I.%I', schemaname, sequencename)
                                = pg_get_serial_sequence('reconciler.restarts', 'id')) THEN
            PERFORM setval(pg_get_serial_sequence('reconciler.restarts', 'id'), highest_id);
            RAISE NOTICE 'schema reconciler: the next restart gets the id %', highest_id + 1;
        END IF;
    END IF;
    IF installed = newest THEN
        IF NOT EXISTS (SELECT FROM reconciler.coverage) THEN
            INSERT INTO reconciler.coverage DEFAULT VALUES ON CONFLICT DO NOTHING;
        END IF;
        RAISE NOTICE 'schema reconciler: already at version %', installed;
        RETURN;
    END IF;

    -- 3. Take all the tables at once, or none: a failed attempt lets go of those that it got.
    SELECT string_agg(format('%I.%I', 'reconciler', relname), ', ' ORDER BY relname) INTO existing
    FROM pg_class WHERE relnamespace = to_regnamespace('reconciler') AND relkind = 'r';
    WHILE existing IS NOT NULL LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', existing);
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > give_up_at THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.02);
        END;
    END LOOP;

    -- 4. The steps.
    -- Step 1: the tables with their present names, and a version number.
    IF installed < 1 THEN
        -- A schema without a version has older names. Whatever it holds is kept.
        IF to_regclass('reconciler.coverage') IS NULL AND to_regclass('reconciler.sweep') IS NOT NULL THEN
            ALTER TABLE reconciler.sweep RENAME TO coverage;
            ALTER TABLE reconciler.coverage RENAME COLUMN pass_began_at TO pass_start;
            ALTER TABLE reconciler.coverage RENAME COLUMN first TO brought_forward;
            ALTER TABLE reconciler.coverage RENAME COLUMN began_at TO first_cycle_at;
            ALTER TABLE reconciler.coverage RENAME CONSTRAINT sweep_pkey TO coverage_pkey;
            ALTER TABLE reconciler.coverage RENAME CONSTRAINT sweep_singleton_check TO coverage_singleton_check;
        END IF;
        IF EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = to_regclass('reconciler.restarts') AND attname = 'next_attempt_at') THEN
            -- The oldest schemas do not watch what becomes of a restart. What they closed stays unwatched.
            unwatched := NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('reconciler.restarts')
                                     AND attname = 'watched_until');
            ALTER TABLE reconciler.restarts
                ADD COLUMN IF NOT EXISTS streak        INTEGER NOT NULL DEFAULT 0,
                ADD COLUMN IF NOT EXISTS paused_until  TIMESTAMPTZ,
                ADD COLUMN IF NOT EXISTS watched_until TIMESTAMPTZ;
            ALTER TABLE reconciler.restarts RENAME COLUMN next_attempt_at TO due_at;
            ALTER TABLE reconciler.restarts RENAME COLUMN paused_until TO backoff_until;
            ALTER TABLE reconciler.restarts RENAME COLUMN watched_until TO watch_ended_at;
            ALTER TABLE reconciler.restarts DROP CONSTRAINT IF EXISTS restarts_outcome_check;
            UPDATE reconciler.restarts
            SET outcome = CASE outcome WHEN 'paid' THEN 'accepted' WHEN 'void' THEN 'cancelled' END,
                last_answer = CASE last_answer WHEN 'asked' THEN 'claimed' ELSE last_answer END,
                watch_ended_at = CASE WHEN unwatched THEN closed_at ELSE watch_ended_at END
            WHERE closed_at IS NOT NULL OR last_answer = 'asked';
            ALTER TABLE reconciler.restarts
                ADD CONSTRAINT restarts_outcome_check CHECK (outcome IN ('accepted', 'cancelled'));
            DROP INDEX IF EXISTS reconciler.restarts_unrecovered;  -- restarts_watched takes its place
        END IF;

        COMMENT ON SCHEMA reconciler IS 'What the instance-state reconciler remembers between its cycles.';

        CREATE TABLE IF NOT EXISTS reconciler.schema_version (
            singleton   BOOLEAN PRIMARY KEY DEFAULT true CHECK (singleton),
            version     INTEGER NOT NULL,
            upgraded_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE reconciler.schema_version IS
            'The version of this schema (one row). Only infra/schema.sql sets it. The function runs on the version it '
            'needs and on every later one.';

        CREATE TABLE IF NOT EXISTS reconciler.lease (
            scope       TEXT PRIMARY KEY,
            holder      UUID NOT NULL,
            acquired_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            expires_at  TIMESTAMPTZ NOT NULL
        );
        COMMENT ON TABLE reconciler.lease IS
            'Lets one cycle at a time act. Safety does not rest on it: the lock on a workspace''s row and the claim on '
            'a restart keep anything from happening twice.';
        COMMENT ON COLUMN reconciler.lease.scope IS 'What the lease is for.';
        COMMENT ON COLUMN reconciler.lease.holder IS 'The id of the cycle whose lease it is.';
        COMMENT ON COLUMN reconciler.lease.expires_at IS 'From then on any cycle may take the lease.';

        CREATE TABLE IF NOT EXISTS reconciler.coverage (
            singleton         BOOLEAN PRIMARY KEY DEFAULT true CHECK (singleton),
            cursor            UUID NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
            pass_start        UUID NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
            brought_forward   UUID[] NOT NULL DEFAULT '{}',
            first_cycle_at    TIMESTAMPTZ,
            pass_completed_at TIMESTAMPTZ
        );
        INSERT INTO reconciler.coverage DEFAULT VALUES ON CONFLICT DO NOTHING;
        COMMENT ON TABLE reconciler.coverage IS
            'How far the full cycles have got (one row). A pass is over when every candidate has been checked once.';
        COMMENT ON COLUMN reconciler.coverage.cursor IS
            'The next full cycle begins after this id. This pass has checked the candidates from pass_start up to it.';
        COMMENT ON COLUMN reconciler.coverage.pass_start IS 'The id after which the current pass began.';
        COMMENT ON COLUMN reconciler.coverage.brought_forward IS
            'Workspaces that the next full cycle checks early, because an earlier one ran out of time for them.';
        COMMENT ON COLUMN reconciler.coverage.first_cycle_at IS 'When the first full cycle saved its progress.';
        COMMENT ON COLUMN reconciler.coverage.pass_completed_at IS 'When the last pass was completed.';

        CREATE TABLE IF NOT EXISTS reconciler.absences (
            workspace_id  UUID PRIMARY KEY,
            instance_id   TEXT NOT NULL,
            sightings     INTEGER NOT NULL,
            first_seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            last_seen_at  TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE reconciler.absences IS
            'Instances that could not be found. One sighting proves nothing, because EC2 is eventually consistent: an '
            'instance counts as gone only after several.';

        CREATE TABLE IF NOT EXISTS reconciler.restarts (
            id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            workspace_id   UUID NOT NULL,
            instance_id    TEXT NOT NULL,
            cycle_id       UUID NOT NULL,
            flipped_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
            attempts       INTEGER NOT NULL DEFAULT 0,
            refusals       INTEGER NOT NULL DEFAULT 0,
            claimed_by     UUID,
            asked_at       TIMESTAMPTZ,
            due_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
            last_answer    TEXT,
            closed_at      TIMESTAMPTZ,
            outcome        TEXT CHECK (outcome IN ('accepted', 'cancelled')),
            streak         INTEGER NOT NULL DEFAULT 0,
            backoff_until  TIMESTAMPTZ,
            watch_ended_at TIMESTAMPTZ
        );
        CREATE UNIQUE INDEX IF NOT EXISTS restarts_one_open_per_workspace
            ON reconciler.restarts (workspace_id) WHERE closed_at IS NULL;
        CREATE INDEX IF NOT EXISTS restarts_due ON reconciler.restarts (due_at) WHERE closed_at IS NULL;
        CREATE INDEX IF NOT EXISTS restarts_flipped_at ON reconciler.restarts (flipped_at);
        CREATE INDEX IF NOT EXISTS restarts_closed_at ON reconciler.restarts (closed_at) WHERE closed_at IS NOT NULL;
        -- A workspace's latest restart. Without it, the newest of all are searched for one of the workspace's.
        CREATE INDEX IF NOT EXISTS restarts_of_workspace ON reconciler.restarts (workspace_id, id);
        DROP INDEX IF EXISTS reconciler.restarts_workspace;
        CREATE INDEX IF NOT EXISTS restarts_watched
            ON reconciler.restarts (workspace_id) WHERE outcome = 'accepted' AND watch_ended_at IS NULL;
        COMMENT ON TABLE reconciler.restarts IS
            'One row for each flip: the restart that is owed from then on. It stays open until the platform accepts it '
            'or the workspace moves on, which cancels it. Closed rows are deleted after 30 days, unless they are watched.';
        COMMENT ON COLUMN reconciler.restarts.instance_id IS 'The instance that was found dead.';
        COMMENT ON COLUMN reconciler.restarts.cycle_id IS 'The cycle that flipped the workspace.';
        COMMENT ON COLUMN reconciler.restarts.attempts IS
            'How often it was claimed. A claim is committed before the call.';
        COMMENT ON COLUMN reconciler.restarts.refusals IS
            'How often it was refused or blocked. Each time doubles the wait.';
        COMMENT ON COLUMN reconciler.restarts.claimed_by IS 'The cycle that claimed it last.';
        COMMENT ON COLUMN reconciler.restarts.asked_at IS
            'When it was claimed last. The platform is asked right after.';
        COMMENT ON COLUMN reconciler.restarts.due_at IS
            'The platform is not asked before then. A claim moves it ahead, so that nobody asks twice after a crash. '
            'Of a closed one that is watched: when its instance was last looked at.';
        COMMENT ON COLUMN reconciler.restarts.last_answer IS
            'What was recorded last while it was open: claimed, refused, blocked or uncertain; NULL: never claimed.';
        COMMENT ON COLUMN reconciler.restarts.outcome IS 'accepted or cancelled; NULL as long as it is open.';
        COMMENT ON COLUMN reconciler.restarts.streak IS
            'Crash loop: how many restarts in a row, before this one, were not followed by a healthy stretch.';
        COMMENT ON COLUMN reconciler.restarts.backoff_until IS
            'Crash loop: the platform is not asked before this time, whatever due_at says.';
        COMMENT ON COLUMN reconciler.restarts.watch_ended_at IS
            'When a cycle first saw the workspace online again, or no longer wanted. An accepted restart is watched '
            'until then.';

        CREATE TABLE IF NOT EXISTS reconciler.restart_stops (
            id       UUID PRIMARY KEY DEFAULT gen_random_uuid(),
            began_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            ends_at  TIMESTAMPTZ NOT NULL
        );
        COMMENT ON TABLE reconciler.restart_stops IS
            'The platform asked to be left alone (Retry-After): no cycle asks it for any restart until ends_at. Each '
            'time is a row of its own, so that nobody waits for a lock.';

        CREATE TABLE IF NOT EXISTS reconciler.holds (
            workspace_id UUID PRIMARY KEY,
            reason       TEXT NOT NULL,
            began_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
            ends_at      TIMESTAMPTZ NOT NULL
        );
        COMMENT ON TABLE reconciler.holds IS
            'Workspaces on hold, for example during maintenance: nothing flips or restarts them until ends_at.';
    END IF;

    -- Step 2: doubts of every kind in place of absences alone; restarts are watched to the end; a hold on everything.
    IF installed < 2 THEN
        CREATE TABLE IF NOT EXISTS reconciler.doubts (
            workspace_id  UUID NOT NULL,
            kind          TEXT NOT NULL CHECK (kind IN ('absent', 'dead', 'transition', 'unknown')),
            instance_id   TEXT NOT NULL,
            reason        TEXT NOT NULL DEFAULT '',
            sightings     INTEGER NOT NULL DEFAULT 1,
            since         TIMESTAMPTZ NOT NULL DEFAULT now(),
            last_seen_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
            offline_since TIMESTAMPTZ,
            by_hand       BOOLEAN NOT NULL DEFAULT false,
            PRIMARY KEY (workspace_id, kind)
        );
        CREATE INDEX IF NOT EXISTS doubts_last_seen_at ON reconciler.doubts (last_seen_at)
            WHERE kind IN ('absent', 'dead');
        CREATE INDEX IF NOT EXISTS doubts_since ON reconciler.doubts (since);
        CREATE INDEX IF NOT EXISTS doubts_not_offline ON reconciler.doubts (workspace_id) WHERE offline_since IS NULL;
        COMMENT ON TABLE reconciler.doubts IS
            'Workspaces whose instance is neither alive nor flipped, as the cycles last saw them. Finding the instance '
            'running, another instance in the row, or a flip ends a workspace''s doubts.';
        COMMENT ON COLUMN reconciler.doubts.kind IS
            'absent: EC2 does not find the instance; dead: not flipped yet; transition; unknown: no usable answer.';
        COMMENT ON COLUMN reconciler.doubts.reason IS 'The latest reason, as the log names it.';
        COMMENT ON COLUMN reconciler.doubts.sightings IS
            'How many sightings were saved. Every absence is: an instance counts as gone only after several.';
        COMMENT ON COLUMN reconciler.doubts.offline_since IS
            'When a cycle first saw the row offline, as the platform''s own monitor sets it. From then on the workspace '
            'may be adopted: its restart becomes owed without a flip.';
        COMMENT ON COLUMN reconciler.doubts.by_hand IS
            'An event with "adopt" made it: a watched restart of another instance is no obstacle to the adoption.';

        CREATE TABLE IF NOT EXISTS reconciler.source_doubts (
            cause        TEXT PRIMARY KEY,
            workspaces   INTEGER NOT NULL,
            since        TIMESTAMPTZ NOT NULL DEFAULT now(),
            last_seen_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE reconciler.source_doubts IS
            'Causes for which more than 1,000 instances were unknown in the last full cycle: one doubt about the '
            'source, in place of one for each workspace.';

        ALTER TABLE reconciler.holds
            ADD COLUMN IF NOT EXISTS id UUID NOT NULL DEFAULT gen_random_uuid(),
            DROP CONSTRAINT IF EXISTS holds_pkey;
        ALTER TABLE reconciler.holds
            ADD CONSTRAINT holds_pkey PRIMARY KEY (id),
            ALTER COLUMN workspace_id DROP NOT NULL;
        CREATE INDEX IF NOT EXISTS holds_of_workspace ON reconciler.holds (workspace_id, ends_at);
        CREATE INDEX IF NOT EXISTS holds_ends_at ON reconciler.holds (ends_at);
        COMMENT ON TABLE reconciler.holds IS
            'Workspaces on hold, for example during maintenance: nothing flips or restarts them until ends_at. Each '
            'hold is a row of its own, so that placing one waits for nobody''s lock; of several, the last one to end '
            'counts. They are deleted 30 days after their end: until then, ages count from it.';
        COMMENT ON COLUMN reconciler.holds.workspace_id IS 'NULL: the hold is on everything.';
        COMMENT ON COLUMN reconciler.holds.ends_at IS 'A release, or a later hold in its place, ends it at once.';

        ALTER TABLE reconciler.restarts
            ADD COLUMN IF NOT EXISTS adopted           BOOLEAN NOT NULL DEFAULT false,
            ADD COLUMN IF NOT EXISTS released          BOOLEAN NOT NULL DEFAULT false,
            ADD COLUMN IF NOT EXISTS kept_back_at      TIMESTAMPTZ,
            ADD COLUMN IF NOT EXISTS absent_sightings  INTEGER NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS absent_since      TIMESTAMPTZ,
            ADD COLUMN IF NOT EXISTS watched_since     TIMESTAMPTZ,
            ADD COLUMN IF NOT EXISTS up_since          TIMESTAMPTZ,
            ADD COLUMN IF NOT EXISTS first_due_at      TIMESTAMPTZ;
        COMMENT ON TABLE reconciler.restarts IS
            'One row for each flip or adoption, and one more each time that the restart is owed again. It stays open '
            'until the platform accepts it or the workspace moves on, which cancels it. Closed rows are deleted after '
            '30 days, unless they are watched.';
        COMMENT ON COLUMN reconciler.restarts.adopted IS
            'The platform had taken the row offline before a cycle could flip it.';
        COMMENT ON COLUMN reconciler.restarts.released IS
            'By an event with "override_breaker": an open breaker does not stop it.';
        COMMENT ON COLUMN reconciler.restarts.kept_back_at IS
            'When a cycle last looked at its instance while an open breaker kept it back; NULL: none ever did.';
        COMMENT ON COLUMN reconciler.restarts.absent_sightings IS
            'In how many cycles in a row its instance was not found, those before the flip included.';
        COMMENT ON COLUMN reconciler.restarts.watched_since IS
            'When it was first asked for with effect, or cancelled because the instance ran. The workspace is watched '
            'from then until watch_ended_at.';
        COMMENT ON COLUMN reconciler.restarts.first_due_at IS
            'What due_at was when the restart became owed. Its age counts from then.';
        COMMENT ON COLUMN reconciler.restarts.up_since IS
            'When a cycle first saw the workspace up (online or degraded) again; NULL while it is not up.';
        COMMENT ON COLUMN reconciler.restarts.watch_ended_at IS
            'When a cycle had seen the workspace up for five minutes, or no longer wanted.';
        -- What may be under way is watched from now on. What was closed before there was a watch stays unwatched.
        UPDATE reconciler.restarts SET first_due_at = flipped_at WHERE closed_at IS NULL AND first_due_at IS NULL;
        UPDATE reconciler.restarts SET watched_since = asked_at
        WHERE closed_at IS NULL AND watched_since IS NULL AND last_answer IN ('claimed', 'uncertain');
        DROP INDEX IF EXISTS reconciler.restarts_watched;
        CREATE INDEX restarts_watched ON reconciler.restarts (workspace_id)
            WHERE watched_since IS NOT NULL AND watch_ended_at IS NULL;

        IF to_regclass('reconciler.absences') IS NOT NULL THEN
            INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, sightings, since, last_seen_at)
            SELECT workspace_id, 'absent', instance_id, sightings, first_seen_at, last_seen_at FROM reconciler.absences
            ON CONFLICT DO NOTHING;
            DROP TABLE reconciler.absences;
        END IF;

        -- Whoever has the function's role may write what the types allow, and a single value that cannot be calculated
        -- with would fail every cycle. So each table has bounds. Old rows beyond them are of no use; but a hold stays.
        UPDATE reconciler.holds
        SET reason = left(reason, 200), began_at = LEAST(GREATEST(began_at, '2000-01-01Z'), '2200-01-01Z'),
            ends_at = CASE WHEN ends_at > '2200-01-01Z' THEN 'infinity' ELSE GREATEST(ends_at, '2000-01-01Z') END;
        FOR bounded IN SELECT * FROM (VALUES
            ('lease', $$
                length(scope) <= 200
                AND LEAST(acquired_at, expires_at) >= '2000-01-01Z'
                AND GREATEST(acquired_at, expires_at) <= '2200-01-01Z'
            $$),
            ('coverage', $$
                cardinality(brought_forward) <= 1000
                AND array_length(brought_forward, 1) = cardinality(brought_forward)
                AND LEAST(first_cycle_at, pass_completed_at) >= '2000-01-01Z'
                AND GREATEST(first_cycle_at, pass_completed_at) <= '2200-01-01Z'
            $$),
            ('doubts', $$
                length(instance_id) <= 65 AND length(reason) <= 200 AND sightings BETWEEN 0 AND 1000000
                AND LEAST(since, last_seen_at, offline_since) >= '2000-01-01Z'
                AND GREATEST(since, last_seen_at, offline_since) <= '2200-01-01Z'
            $$),
            ('source_doubts', $$
                length(cause) <= 200 AND workspaces >= 0
                AND LEAST(since, last_seen_at) >= '2000-01-01Z' AND GREATEST(since, last_seen_at) <= '2200-01-01Z'
            $$),
            ('restarts', $$
                length(instance_id) <= 65 AND length(last_answer) <= 20
                AND LEAST(attempts, refusals, streak, absent_sightings) >= 0
                AND GREATEST(attempts, refusals, streak, absent_sightings) <= 1000000
                AND LEAST(flipped_at, asked_at, due_at, closed_at, backoff_until, watch_ended_at, kept_back_at,
                          absent_since, watched_since, up_since, first_due_at) >= '2000-01-01Z'
                AND GREATEST(flipped_at, asked_at, due_at, closed_at, backoff_until, watch_ended_at, kept_back_at,
                             absent_since, watched_since, up_since, first_due_at) <= '2200-01-01Z'
            $$),
            ('restart_stops', $$
                LEAST(began_at, ends_at) >= '2000-01-01Z' AND GREATEST(began_at, ends_at) <= '2200-01-01Z'
            $$),
            ('holds', $$  -- one without an end may be placed by hand
                length(reason) <= 200 AND LEAST(began_at, ends_at) >= '2000-01-01Z' AND began_at <= '2200-01-01Z'
                AND (ends_at <= '2200-01-01Z' OR ends_at = 'infinity')
            $$)
        ) AS bounds (name, condition) LOOP
            EXECUTE format('DELETE FROM reconciler.%I WHERE NOT (%s)', bounded.name, bounded.condition);
            EXECUTE format('ALTER TABLE reconciler.%1$I DROP CONSTRAINT IF EXISTS %2$I, ADD CONSTRAINT %2$I CHECK (%3$s)',
                           bounded.name, bounded.name || '_bounds', bounded.condition);
        END LOOP;
        INSERT INTO reconciler.coverage DEFAULT VALUES ON CONFLICT DO NOTHING;

        -- An instance that is not found counts as gone once its absence is old enough. So whoever is not the owner
        -- cannot make an absence older than it is. now() would not do: it is when the transaction began. One that lies
        -- in the future, after the clock was wrong, is older than that.
        CREATE OR REPLACE FUNCTION reconciler.date_doubt() RETURNS trigger
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
        BEGIN
            IF pg_has_role((SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
                RETURN NEW;
            ELSIF TG_OP = 'UPDATE' AND (NEW.workspace_id, NEW.kind, NEW.instance_id)
                                       = (OLD.workspace_id, OLD.kind, OLD.instance_id) THEN
                NEW.since := GREATEST(NEW.since, LEAST(OLD.since, clock_timestamp()));
            ELSE
                NEW.since := clock_timestamp();
            END IF;
            RETURN NEW;
        END
        $function$;
        -- STABLE: it sees the doubts as they were before the statement, and a flip deletes them in the statement itself.
        CREATE OR REPLACE FUNCTION reconciler.date_absence() RETURNS trigger
        LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
        BEGIN
            IF NEW.absent_since IS NULL
               OR pg_has_role((SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
                RETURN NEW;
            ELSIF TG_OP = 'UPDATE' AND (NEW.workspace_id, NEW.instance_id) = (OLD.workspace_id, OLD.instance_id) THEN
                NEW.absent_since := GREATEST(NEW.absent_since, LEAST(OLD.absent_since, clock_timestamp()));
            ELSE
                NEW.absent_since := GREATEST(NEW.absent_since, LEAST(
                    clock_timestamp(),
                    (SELECT min(since) FROM reconciler.doubts
                     WHERE workspace_id = NEW.workspace_id AND instance_id = NEW.instance_id AND kind = 'absent'),
                    (SELECT min(absent_since) FROM reconciler.restarts
                     WHERE workspace_id = NEW.workspace_id AND instance_id = NEW.instance_id)));
            END IF;
            RETURN NEW;
        END
        $function$;
        DROP TRIGGER IF EXISTS date_doubt ON reconciler.doubts;
        CREATE TRIGGER date_doubt BEFORE INSERT OR UPDATE ON reconciler.doubts
            FOR EACH ROW EXECUTE FUNCTION reconciler.date_doubt();
        DROP TRIGGER IF EXISTS date_absence ON reconciler.restarts;
        CREATE TRIGGER date_absence BEFORE INSERT OR UPDATE ON reconciler.restarts
            FOR EACH ROW EXECUTE FUNCTION reconciler.date_absence();
    END IF;

    -- Step 3: shards, and a view for the platform. The previous release knows no shards: its leases and doubts are those
    -- of the whole fleet, shard 0 of 1.
    IF installed < 3 THEN
        ALTER TABLE reconciler.lease
            ADD COLUMN IF NOT EXISTS shards INTEGER NOT NULL DEFAULT 1,
            ADD COLUMN IF NOT EXISTS shard  INTEGER NOT NULL DEFAULT 0,
            DROP CONSTRAINT IF EXISTS lease_shard,
            ADD CONSTRAINT lease_shard CHECK (shards BETWEEN 1 AND 1000 AND shard BETWEEN 0 AND shards - 1);
        COMMENT ON TABLE reconciler.lease IS
            'Lets one cycle at a time act in any range of ids. Safety does not rest on it: the lock on a workspace''s '
            'row and the claim on a restart keep anything from happening twice.';
        COMMENT ON COLUMN reconciler.lease.shard IS
            'It is the lease on this shard: number `shard`, from 0 on, of `shards` equal ranges of the ids.';

        ALTER TABLE reconciler.source_doubts
            ADD COLUMN IF NOT EXISTS shards INTEGER NOT NULL DEFAULT 1,
            ADD COLUMN IF NOT EXISTS shard  INTEGER NOT NULL DEFAULT 0,
            DROP CONSTRAINT IF EXISTS source_doubts_shard,
            ADD CONSTRAINT source_doubts_shard CHECK (shards BETWEEN 1 AND 1000 AND shard BETWEEN 0 AND shards - 1),
            DROP CONSTRAINT IF EXISTS source_doubts_pkey;
        ALTER TABLE reconciler.source_doubts ADD CONSTRAINT source_doubts_pkey PRIMARY KEY (cause, shards, shard);
        COMMENT ON TABLE reconciler.source_doubts IS
            'Causes for which more than 1,000 instances were unknown in the last cycle of a shard: one doubt about the '
            'source, in place of one for each workspace.';
        COMMENT ON COLUMN reconciler.source_doubts.shard IS
            'Which shard saw it: number `shard`, from 0 on, of `shards` equal ranges of the ids.';

        CREATE TABLE IF NOT EXISTS reconciler.shard_coverage (
            shards            INTEGER NOT NULL,
            shard             INTEGER NOT NULL,
            cursor            UUID,
            pass_start        UUID,
            brought_forward   UUID[] NOT NULL DEFAULT '{}',
            taken_up_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
            used_at           TIMESTAMPTZ,
            pass_completed_at TIMESTAMPTZ,
            PRIMARY KEY (shards, shard),
            CONSTRAINT shard_coverage_bounds CHECK (
                shards BETWEEN 1 AND 1000 AND shard BETWEEN 0 AND shards - 1
                AND cardinality(brought_forward) <= 1000
                AND array_length(brought_forward, 1) = cardinality(brought_forward)
                AND LEAST(taken_up_at, used_at, pass_completed_at) >= '2000-01-01Z'
                AND GREATEST(taken_up_at, used_at, pass_completed_at) <= '2200-01-01Z'
            )
        );
        COMMENT ON TABLE reconciler.coverage IS
            'How far the full cycles of the previous release got (one row). This release keeps shard_coverage, and goes on '
            'from here once.';
        COMMENT ON TABLE reconciler.shard_coverage IS
            'How far each shard has got: number `shard`, from 0 on, of `shards` equal ranges of the ids. A full cycle is '
            'shard 0 of 1. A set of shards that was not used for a week is deleted.';
        COMMENT ON COLUMN reconciler.shard_coverage.cursor IS
            'The shard''s next cycle begins after this id. This pass has checked the candidates from pass_start up to '
            'it. NULL: the shard has saved nothing yet.';
        COMMENT ON COLUMN reconciler.shard_coverage.pass_start IS 'The id after which the current pass began.';
        COMMENT ON COLUMN reconciler.shard_coverage.brought_forward IS
            'Workspaces that the shard''s next cycle checks early, because an earlier one ran out of time for them.';
        COMMENT ON COLUMN reconciler.shard_coverage.taken_up_at IS
            'When this set of shards was used first, or again after a rest. Its ages count from then at the earliest.';
        COMMENT ON COLUMN reconciler.shard_coverage.used_at IS
            'When a cycle of the shard last began or saved its progress; NULL: never.';
        COMMENT ON COLUMN reconciler.shard_coverage.pass_completed_at IS 'When the shard''s last pass was completed.';

        -- A view for the platform. It reads our own tables alone, and shows nobody's words: neither the reason of a
        -- hold nor an instance id. `security_barrier` keeps functions in a query on it from seeing other rows.
        -- All of it follows indexes from the workspace on: a question about one workspace reads that one's rows alone.
        CREATE OR REPLACE VIEW reconciler.workspace_restarts WITH (security_barrier = true) AS
        WITH everything AS (
            SELECT max(ends_at) FILTER (WHERE ends_at > now()) AS on_hold_until,
                   (SELECT max(ends_at) FROM reconciler.restart_stops
                    WHERE ends_at > now() AND ends_at <= now() + interval '25 hours') AS stopped_until
            FROM reconciler.holds WHERE workspace_id IS NULL
        ), known AS (
            SELECT latest.*, stopped_until, GREATEST(own.ends_at, everything.on_hold_until) AS on_hold_until
            FROM (
                SELECT DISTINCT ON (workspace_id) *, closed_at IS NULL AS is_open FROM reconciler.restarts
                WHERE closed_at IS NULL OR watched_since IS NOT NULL AND watch_ended_at IS NULL
                ORDER BY workspace_id, closed_at IS NULL DESC, id DESC
            ) AS latest CROSS JOIN everything CROSS JOIN LATERAL (
                SELECT max(ends_at) AS ends_at FROM reconciler.holds
                WHERE holds.workspace_id = latest.workspace_id AND ends_at > now()
            ) AS own
        )
        SELECT workspace_id, on_hold_until,
               CASE WHEN is_open THEN flipped_at END AS owed_since,
               CASE WHEN is_open THEN GREATEST(now(), due_at, backoff_until, on_hold_until, stopped_until) END
                   AS next_attempt_at,
               CASE WHEN is_open AND backoff_until > now() THEN backoff_until END AS backing_off_until,
               CASE
                   WHEN is_open AND on_hold_until IS NOT NULL THEN 'on hold'
                   WHEN is_open AND stopped_until IS NOT NULL THEN 'the platform asked to be left alone'
                   WHEN is_open AND kept_back_at > COALESCE(asked_at, '-infinity') AND NOT released
                       THEN 'kept back by the breaker'
                   WHEN is_open AND backoff_until > now() THEN format('backing off: restart %s in a row', streak + 1)
                   WHEN is_open AND due_at <= now() THEN 'due'
                   WHEN is_open AND last_answer = 'claimed' THEN 'asked for, without an answer yet'
                   WHEN is_open AND last_answer = 'uncertain' THEN 'asked for, and uncertain whether it has begun'
                   WHEN is_open AND last_answer = 'refused' THEN 'refused by the platform, and tried again'
                   WHEN is_open AND last_answer = 'blocked' THEN 'blocked by a paused ancestor, and tried again'
                   WHEN is_open AND watched_since IS NOT NULL THEN 'owed again: an earlier restart did nothing'
                   WHEN is_open AND adopted THEN 'adopted: somebody else may be at it'
                   WHEN is_open THEN 'waiting for its grace'
                   WHEN up_since IS NOT NULL THEN 'up again, and watched'
                   WHEN on_hold_until IS NULL AND watched_since < now() - interval '15 minutes'
                       THEN 'unrecovered: it should be up by now'
                   ELSE 'watched: it should be up soon'
               END AS reason
        FROM known
        UNION ALL
        SELECT workspace_id, max(ends_at), NULL, NULL, NULL, 'on hold' FROM reconciler.holds
        WHERE ends_at > now() AND NOT EXISTS (
            SELECT FROM reconciler.restarts
            WHERE restarts.workspace_id = holds.workspace_id
              AND (closed_at IS NULL OR watched_since IS NOT NULL AND watch_ended_at IS NULL))
        GROUP BY workspace_id;
        COMMENT ON VIEW reconciler.workspace_restarts IS
            'For the platform: why a workspace is not back, and when it will be. A row for each one whose restart is '
            'owed or watched, or that is on hold. docs/reference.md says how to grant it.';
        COMMENT ON COLUMN reconciler.workspace_restarts.workspace_id IS 'NULL: the hold is on everything.';
        COMMENT ON COLUMN reconciler.workspace_restarts.owed_since IS
            'When the workspace was flipped or adopted; NULL: no restart is owed.';
        COMMENT ON COLUMN reconciler.workspace_restarts.next_attempt_at IS
            'The platform is not asked before; NULL: no restart is owed.';
        COMMENT ON COLUMN reconciler.workspace_restarts.backing_off_until IS 'NULL: it is in no crash loop.';
        COMMENT ON COLUMN reconciler.workspace_restarts.reason IS 'The state of its restart, in words.';
    END IF;

    INSERT INTO reconciler.schema_version (version) VALUES (newest)
    ON CONFLICT (singleton) DO UPDATE SET version = EXCLUDED.version, upgraded_at = EXCLUDED.upgraded_at;
    FOR strange IN  -- the same for new tables, which nobody else has seen yet
        SELECT DISTINCT format('REVOKE TRIGGER, REFERENCES ON %s FROM %s', pg_class.oid::regclass,
                               CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
        FROM pg_class, aclexplode(relacl)
        WHERE relnamespace = to_regnamespace('reconciler') AND privilege_type IN ('TRIGGER', 'REFERENCES')
          AND grantee <> relowner
    LOOP
        EXECUTE strange;
    END LOOP;
    RAISE NOTICE 'schema reconciler: now at version %', newest;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RAISE EXCEPTION USING
        ERRCODE = 'lock_not_available',
        MESSAGE = 'nothing was changed: for 2 seconds other sessions (a backup, a cycle, another installer) kept the '
                  'schema reconciler locked. Run infra/schema.sql again, preferably once they are done';
END
$schema$;
