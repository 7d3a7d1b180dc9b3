-- alerts: what somebody is to be told of, and who was told; see functions/alert.
CREATE SCHEMA alerts;

-- One row each time that a rule began to hold for a group. At most one of a group is
-- open.
CREATE TABLE alerts.alerts (
    alert_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule            text NOT NULL,
    -- The values of the labels that the rule groups by, as one text.
    group_key       text NOT NULL,
    labels          jsonb NOT NULL,
    -- The highest of the severities that its events had.
    severity        text NOT NULL CHECK (severity IN ('LOW', 'MEDIUM', 'HIGH', 'CRITICAL')),
    summary         text NOT NULL,
    -- The latest event's data, or what matters of it.
    details         jsonb NOT NULL,
    -- Source and id of the event that opened it, so that it is answered alike when it
    -- comes again.
    opened_source   text NOT NULL,
    opened_id       text NOT NULL,
    -- How many events there were. Of rules that do not remember events, one that was
    -- delivered twice counts twice.
    events          bigint NOT NULL,
    -- Times that the events name.
    first_event_at  timestamptz NOT NULL,
    last_event_at   timestamptz NOT NULL,
    state           text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'resolved')),
    -- Kept, and told to nobody: the rule had raised too many.
    suppressed      boolean NOT NULL DEFAULT false,
    raised_at       timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    resolved_at     timestamptz,
    -- The type of the event that resolved it, or 'quiet'.
    resolution      text
);
CREATE UNIQUE INDEX alerts_open ON alerts.alerts (rule, group_key) WHERE state = 'open';
CREATE INDEX alerts_opened_by ON alerts.alerts (opened_id);
CREATE INDEX alerts_of_group ON alerts.alerts (rule, group_key, alert_id DESC);
CREATE INDEX alerts_raised ON alerts.alerts (raised_at DESC);
CREATE INDEX alerts_of_rule ON alerts.alerts (rule, raised_at DESC);

-- Of rules that events resolve: what a group consists of, as the several anomalies of a
-- server, each with the latest times at which events said that it began and ended. A
-- group has an open alert while one of its members began after it ended; in which order
-- the events come does not matter.
CREATE TABLE alerts.members (
    rule            text NOT NULL,
    group_key       text NOT NULL,
    member          text NOT NULL,
    began_at        timestamptz NOT NULL DEFAULT '-infinity',
    ended_at        timestamptz NOT NULL DEFAULT '-infinity',
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rule, group_key, member)
);
CREATE INDEX members_updated ON alerts.members USING brin (updated_at);

-- Events that rules remember, so that each counts once.
CREATE TABLE alerts.seen (
    rule            text NOT NULL,
    event_source    text NOT NULL,
    event_id        text NOT NULL,
    seen_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rule, event_source, event_id)
);
CREATE INDEX seen_at ON alerts.seen USING brin (seen_at);

-- What is to be sent, and was: one row an alert, sink and occasion.
CREATE TABLE alerts.deliveries (
    delivery_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id        bigint NOT NULL REFERENCES alerts.alerts ON DELETE CASCADE,
    sink            text NOT NULL,
    occasion        text NOT NULL CHECK (occasion IN ('raised', 'resolved', 'reminder')),
    -- Reminders are numbered.
    number          int NOT NULL DEFAULT 0,
    attempts        int NOT NULL DEFAULT 0,
    due_at          timestamptz NOT NULL DEFAULT now(),
    -- Whoever claims a delivery has it until then, alone.
    leased_until    timestamptz,
    lease           text,
    sent_at         timestamptz,
    -- Given up at, after too many attempts.
    failed_at       timestamptz,
    error           text,
    UNIQUE (alert_id, sink, occasion, number)
);
CREATE INDEX deliveries_due ON alerts.deliveries (due_at) WHERE sent_at IS NULL AND failed_at IS NULL;
