-- The platform's tables, as they are before the reconciler is deployed. In production, the platform owns them.
--
--   psql -v status_type=enum -f platform.sql     current installations: workspaces.status is an enum
--   psql -v status_type=text -f platform.sql     older ones: it is plain text

SELECT :'status_type' = 'enum' AS status_is_enum \gset

\if :status_is_enum
    CREATE TYPE workspace_status AS ENUM (
        'provisioning', 'online', 'offline', 'degraded', 'failed',
        'removed', 'paused', 'hibernated', 'hibernating', 'awaiting_agent'
    );
    \set status_column workspace_status
\else
    \set status_column TEXT
\endif

CREATE TABLE workspaces (
    id                UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name              TEXT NOT NULL,
    tier              INTEGER DEFAULT 1,
    status            :status_column DEFAULT 'provisioning',
    runtime           TEXT DEFAULT 'langgraph',
    instance_id       TEXT,
    url               TEXT,
    parent_id         UUID REFERENCES workspaces (id),
    last_heartbeat_at TIMESTAMPTZ,
    created_at        TIMESTAMPTZ DEFAULT now(),
    updated_at        TIMESTAMPTZ DEFAULT now()
);
CREATE INDEX idx_workspaces_status ON workspaces (status);
CREATE INDEX idx_workspaces_instance_id ON workspaces (instance_id) WHERE instance_id IS NOT NULL;

CREATE TABLE structure_events (
    id           UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    event_type   TEXT NOT NULL,
    workspace_id UUID,
    agent_id     UUID,
    target_id    UUID,
    payload      JSONB,
    created_at   TIMESTAMPTZ DEFAULT now()
);
