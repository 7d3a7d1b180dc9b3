-- drift: how far what models get today is from what they were trained on; see
-- functions/drift.
CREATE SCHEMA drift;

-- One row a measured window of a model: a model is measured once for each window, by
-- the version that served then.
CREATE TABLE drift.windows (
    model           text NOT NULL,
    -- Rows with window_start <= time < window_end.
    window_start    timestamptz NOT NULL,
    window_end      timestamptz NOT NULL,
    model_version   text NOT NULL,
    -- Rows that were read, and rows of the baseline.
    rows            bigint NOT NULL,
    reference_rows  bigint NOT NULL,
    -- Columns that count for the share, and those of them that drifted.
    columns         int NOT NULL,
    drifted_columns int NOT NULL,
    -- Whether this window by itself is over the limits, and why.
    over            boolean NOT NULL,
    reasons         text[] NOT NULL,
    -- Windows in a row that were over, this one included.
    consecutive     int NOT NULL,
    -- Whether a drift of this version holds since, or has held until, this window.
    state           text NOT NULL CHECK (state IN ('stable', 'detected', 'drifting', 'resolved')),
    -- All that the report shows.
    report          jsonb NOT NULL,
    measured_at     timestamptz NOT NULL DEFAULT now(),
    -- When its events and its report had been sent; null until then.
    sent_at         timestamptz,
    PRIMARY KEY (model, window_end)
);
CREATE INDEX windows_unsent ON drift.windows (window_end) WHERE sent_at IS NULL;

-- One row a window, column and statistic.
CREATE TABLE drift.measurements (
    model           text NOT NULL,
    window_end      timestamptz NOT NULL,
    -- feature, score or error; and its name.
    kind            text NOT NULL CHECK (kind IN ('feature', 'score', 'error')),
    name            text NOT NULL,
    statistic       text NOT NULL,
    value           double precision NOT NULL,
    -- Of statistics that are tests.
    p_value         double precision,
    -- Of the statistic that decides for the column: its limit, and the decision.
    threshold       double precision,
    drifted         boolean,
    PRIMARY KEY (model, window_end, kind, name, statistic),
    FOREIGN KEY (model, window_end) REFERENCES drift.windows ON DELETE CASCADE
);
CREATE INDEX measurements_name ON drift.measurements (model, name, statistic, window_end);
