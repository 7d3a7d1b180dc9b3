-- learning: when each model is trained, what came of it, and which version serves.
-- functions/train-trigger is the only writer.
CREATE SCHEMA learning;

-- What the policy of a model remembers. The row is also the lock that lets one
-- process at a time decide about the model.
CREATE TABLE learning.models (
    model           text PRIMARY KEY,
    -- New rows are those that came after this: when the last run that gave a model was
    -- asked for. NULL before the first.
    trained_until   timestamptz,
    -- Why a run is wanted that could not be asked for yet, as drift during a cool-down.
    wanted_for      text CHECK (wanted_for IN ('rows', 'schedule', 'drift', 'demand', 'retry')),
    wanted_source   text,
    wanted_id       text,
    wanted_at       timestamptz,
    -- Runs that failed since the last one that did not; the next waits the longer.
    failures        int NOT NULL DEFAULT 0
);

-- A run of the trainer. One that was given up has failed, whatever comes of it later.
CREATE TABLE learning.runs (
    run_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model           text NOT NULL REFERENCES learning.models,
    asked_for       text NOT NULL CHECK (asked_for IN ('rows', 'schedule', 'drift', 'demand', 'retry')),
    asked_by_source text NOT NULL,
    asked_by_id     text NOT NULL,
    -- The id of its training.requested, which the trainer's answer names.
    request_id      text NOT NULL UNIQUE,
    requested_at    timestamptz NOT NULL,
    deadline        timestamptz NOT NULL,
    state           text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'completed', 'judged', 'failed')),
    ended_at        timestamptz,
    version         text,
    -- Of a run that failed: the trainer's reason, or 'timeout'.
    reason          text,
    message         text,
    -- The data of training.completed.
    report          jsonb
);
-- One run of a model at a time, until its model is judged.
CREATE UNIQUE INDEX runs_open ON learning.runs (model) WHERE state IN ('requested', 'completed');
CREATE INDEX runs_model ON learning.runs (model, run_id);

-- One row a decision, which is also the event that tells of it: the row is written
-- with what it changes, and the event is sent after that, again if need be.
CREATE TABLE learning.decisions (
    decision_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model           text NOT NULL REFERENCES learning.models,
    -- train: a run is asked for. promote, keep: what the gate says of its model.
    -- rollback: a former version is to serve. give up: a run has not answered in time.
    decision        text NOT NULL CHECK (decision IN ('train', 'promote', 'keep', 'rollback', 'give up')),
    -- What it follows from: an event, or a request over HTTP. The same gives no second.
    cause_source    text NOT NULL,
    cause_id        text NOT NULL,
    run_id          bigint REFERENCES learning.runs,
    -- The version that it is about, and the one that served before.
    version         text,
    former          text,
    reason          text NOT NULL,
    decided_at      timestamptz NOT NULL DEFAULT now(),
    -- Of promote and rollback: when the alias had moved. Until then it is to be moved.
    moved_at        timestamptz,
    -- The event that tells of it; when the Broker had taken it.
    event           jsonb,
    sent_at         timestamptz,
    UNIQUE (model, decision, cause_source, cause_id)
);
CREATE UNIQUE INDEX decisions_moving ON learning.decisions (model) WHERE decision IN ('promote', 'rollback') AND moved_at IS NULL;
CREATE INDEX decisions_unsent ON learning.decisions (decision_id) WHERE event IS NOT NULL AND sent_at IS NULL;
CREATE INDEX decisions_moves ON learning.decisions (model, version, decision_id) WHERE moved_at IS NOT NULL;
