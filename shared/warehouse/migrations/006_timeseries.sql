-- timeseries: what is measured, predicted and found odd, by time. The tables and views
-- that people query are in schema public, their parts and the bookkeeping in schema
-- timeseries.
--
-- Where TimescaleDB's extension is in the database, the tables are hypertables,
-- compressed after 7 days and dropped after 90, and the hourly aggregates continuous
-- ones. Where it is not, the tables are cut into a partition a day, and functions/store
-- drops old ones and refreshes the aggregates on a tick. The names and columns are the
-- same. Package timeseries says how to get from the one to the other.
CREATE SCHEMA timeseries;

-- One row a table that is cut by time.
CREATE TABLE timeseries.tables (
    name          text PRIMARY KEY,
    -- The stream contract whose records it has; null for what functions emit.
    contract      text UNIQUE,
    time_column   text NOT NULL,
    entity_column text NOT NULL,
    key           text[] NOT NULL,
    -- Whether TimescaleDB keeps it; it stays what it was made as, whatever is installed
    -- later. If TimescaleDB was there and would not: what it said.
    hypertable    boolean NOT NULL DEFAULT false,
    refused       text,
    made_at       timestamptz NOT NULL DEFAULT now()
);

-- Hourly aggregates of them: name, of which table, by which column, and what.
CREATE TABLE timeseries.aggregates (
    name   text PRIMARY KEY,
    source text NOT NULL REFERENCES timeseries.tables,
    entity text NOT NULL,
    -- Expressions over the source, with their names.
    list   text NOT NULL,
    -- Whether TimescaleDB refreshes it, and if it would not, what it said.
    continuous boolean NOT NULL DEFAULT false,
    refused    text
);

-- The hours that got rows since the aggregates were last refreshed, a row each
-- transaction. TimescaleDB keeps such a list of its own.
CREATE TABLE timeseries.touched (
    source text NOT NULL,
    hour   timestamptz NOT NULL
);

-- The schema that TimescaleDB's functions are in; null where it is not installed, or is
-- the edition that does without compression and aggregates.
CREATE FUNCTION timeseries.extension() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog
RETURN (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'timescaledb' AND current_setting('timescaledb.license', true) = 'timescale');

-- Makes a table. columns is SQL: names and types, separated by commas.
CREATE FUNCTION timeseries.make(name text, columns text, key text[], time_column text, entity_column text, contract text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    extension text := timeseries.extension();
    statement text := format('CREATE TABLE public.%I (%s, created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (%s))', name, columns,
        (SELECT string_agg(format('%I', k), ', ' ORDER BY n) FROM unnest(key) WITH ORDINALITY AS u (k, n)));
    table_name text := format('public.%I', name);
    problem text;
BEGIN
    INSERT INTO timeseries.tables VALUES (name, contract, time_column, entity_column, key);
    IF extension IS NOT NULL THEN
        BEGIN
            EXECUTE statement;
            EXECUTE format('CREATE INDEX ON public.%I (%I DESC)', name, time_column);
            EXECUTE format('SELECT %I.create_hypertable(%L::regclass, %L::name, create_default_indexes => false)', extension, table_name, time_column);
            EXECUTE format('ALTER TABLE public.%I SET (timescaledb.compress, timescaledb.compress_segmentby = %L, timescaledb.compress_orderby = %L)',
                name, format('%I', entity_column), format('%I DESC', time_column));
            EXECUTE format('SELECT %I.add_compression_policy(%L::regclass, INTERVAL ''7 days'')', extension, table_name);
            EXECUTE format('SELECT %I.add_retention_policy(%L::regclass, INTERVAL ''90 days'')', extension, table_name);
            UPDATE timeseries.tables t SET hypertable = true WHERE t.name = make.name;
            RETURN;
        EXCEPTION WHEN OTHERS THEN
            -- All of it is undone, and the table is one that works without.
            GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
            UPDATE timeseries.tables t SET refused = problem WHERE t.name = make.name;
        END;
    END IF;
    EXECUTE statement || format(' PARTITION BY RANGE (%I)', time_column);
    EXECUTE format('CREATE INDEX ON public.%I (%I DESC)', name, time_column);
    -- For times that no partition is made for; see timeseries.cover.
    EXECUTE format('CREATE TABLE timeseries.%I PARTITION OF public.%I DEFAULT', name || '_other', name);
END $$;

-- Makes the partitions of days that have none, and moves there what is in the partition
-- for other times. TimescaleDB makes its own.
CREATE FUNCTION timeseries.cover(name text, days date[])
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog SET timezone = 'UTC' AS $$
DECLARE
    day date;
    part text;
    column_name text;
BEGIN
    SELECT CASE WHEN NOT t.hypertable THEN t.time_column END INTO STRICT column_name FROM timeseries.tables t WHERE t.name = cover.name;
    IF column_name IS NULL THEN
        RETURN;
    END IF;
    -- One process at a time, whatever it writes into the table meanwhile.
    EXECUTE format('LOCK TABLE public.%I IN SHARE UPDATE EXCLUSIVE MODE', name);
    FOREACH day IN ARRAY days LOOP
        part := name || to_char(day, '_YYYYMMDD');
        CONTINUE WHEN to_regclass(format('timeseries.%I', part)) IS NOT NULL;
        EXECUTE format('LOCK TABLE timeseries.%I IN ACCESS EXCLUSIVE MODE', name || '_other');
        EXECUTE format('CREATE TABLE timeseries.%I (LIKE public.%I INCLUDING ALL)', part, name);
        EXECUTE format('WITH moved AS (DELETE FROM timeseries.%1$I WHERE %2$I >= %3$L::timestamptz AND %2$I < %4$L::timestamptz RETURNING *) INSERT INTO timeseries.%5$I SELECT * FROM moved',
            name || '_other', column_name, day, day + 1, part);
        EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION timeseries.%I FOR VALUES FROM (%L) TO (%L)', name, part, day, day + 1);
    END LOOP;
END $$;

-- Deletes what is older than retention: whole days, and single rows of other times. It
-- returns how many days. The aggregates stay. TimescaleDB has its own policy.
CREATE FUNCTION timeseries.expire(retention interval)
RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog SET timezone = 'UTC' AS $$
DECLARE
    t timeseries.tables;
    part text;
    dropped int := 0;
BEGIN
    FOR t IN SELECT * FROM timeseries.tables WHERE NOT hypertable LOOP
        FOR part IN
            SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = format('public.%I', t.name)::regclass AND c.relname ~ '_[0-9]{8}$'
                AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= now() - retention
        LOOP
            EXECUTE format('DROP TABLE timeseries.%I', part);
            dropped := dropped + 1;
        END LOOP;
        EXECUTE format('DELETE FROM timeseries.%I WHERE %I < now() - %L::interval', t.name || '_other', t.time_column, retention);
    END LOOP;
    RETURN dropped;
END $$;

-- Makes an hourly aggregate of a table: hour, the entity, and the expressions of list,
-- SQL with a name each.
CREATE FUNCTION timeseries.aggregate(name text, source text, entity text, list text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    t timeseries.tables;
    extension text := timeseries.extension();
    problem text;
BEGIN
    SELECT * INTO STRICT t FROM timeseries.tables WHERE tables.name = source;
    INSERT INTO timeseries.aggregates VALUES (name, source, entity, list);
    IF t.hypertable THEN
        BEGIN
            -- What is newer than the last refresh is computed when it is asked for.
            EXECUTE format('CREATE MATERIALIZED VIEW public.%I WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
                SELECT %I.time_bucket(INTERVAL ''1 hour'', %I) AS hour, %I, %s FROM public.%I GROUP BY 1, 2 WITH NO DATA',
                name, extension, t.time_column, entity, list, source);
            -- Back to where rows are dropped and no further, or the aggregate would lose the
            -- hour too; within that, hours that got rows since, as by loading history, are
            -- refreshed.
            EXECUTE format('SELECT %I.add_continuous_aggregate_policy(%L::regclass, start_offset => INTERVAL ''89 days'', end_offset => INTERVAL ''1 hour'', schedule_interval => INTERVAL ''1 hour'')',
                extension, format('public.%I', name));
            UPDATE timeseries.aggregates a SET continuous = true WHERE a.name = aggregate.name;
            RETURN;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
            UPDATE timeseries.aggregates a SET refused = problem WHERE a.name = aggregate.name;
        END;
    END IF;
    EXECUTE format('CREATE TABLE public.%I AS SELECT %I AS hour, %I, %s FROM public.%I GROUP BY 1, 2 WITH NO DATA', name, t.time_column, entity, list, source);
    EXECUTE format('ALTER TABLE public.%I ADD PRIMARY KEY (hour, %I)', name, entity);
    -- For what is there already.
    EXECUTE format('INSERT INTO timeseries.touched SELECT DISTINCT %L, date_trunc(''hour'', %I) FROM public.%I', source, t.time_column, source);
END $$;

-- Tells whether the hours of new rows of a table are to be noted in timeseries.touched.
CREATE FUNCTION timeseries.aggregated(name text) RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog
RETURN EXISTS (SELECT FROM timeseries.aggregates a WHERE a.source = aggregated.name AND NOT a.continuous);

-- Computes the hours again that got rows, but for those whose rows may have been dropped.
-- It returns how many hours; null when another process is at it.
--
-- A transaction that commits after its row was looked for has its row of touched left.
CREATE FUNCTION timeseries.refresh(retention interval DEFAULT NULL)
RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    a timeseries.aggregates;
    span record;
    column_name text;
    hours int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(470020653571) THEN
        RETURN NULL;
    END IF;
    CREATE TEMP TABLE IF NOT EXISTS refreshing (source text, hour timestamptz) ON COMMIT DELETE ROWS;
    WITH taken AS (DELETE FROM timeseries.touched RETURNING source, hour)
    INSERT INTO pg_temp.refreshing SELECT DISTINCT taken.source, taken.hour FROM taken;
    FOR a IN SELECT * FROM timeseries.aggregates WHERE NOT continuous LOOP
        SELECT t.time_column INTO STRICT column_name FROM timeseries.tables t WHERE t.name = a.source;
        -- Hours that follow each other are one span, but at most a day of them.
        FOR span IN
            SELECT min(r.hour) AS first, max(r.hour) + interval '1 hour' AS until, count(*) AS n
            FROM (SELECT hour, hour - row_number() OVER (ORDER BY hour) * interval '1 hour' AS run
                  FROM pg_temp.refreshing WHERE source = a.source AND (retention IS NULL OR hour > now() - retention)) r
            GROUP BY run, date_trunc('day', r.hour)
        LOOP
            EXECUTE format('DELETE FROM public.%I WHERE hour >= $1 AND hour < $2', a.name) USING span.first, span.until;
            EXECUTE format('INSERT INTO public.%I SELECT date_trunc(''hour'', %I), %I, %s FROM public.%I WHERE %2$I >= $1 AND %2$I < $2 GROUP BY 1, 2',
                a.name, column_name, a.entity, a.list, a.source) USING span.first, span.until;
            hours := hours + span.n;
        END LOOP;
    END LOOP;
    RETURN hours;
END $$;

-- Takes in what was loaded by other means than functions/store: makes the partitions that
-- the rows need, and has the aggregates of their hours computed by the next refresh.
CREATE FUNCTION timeseries.adopt()
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog SET timezone = 'UTC' AS $$
DECLARE
    t timeseries.tables;
    days date[];
BEGIN
    FOR t IN SELECT * FROM timeseries.tables WHERE NOT hypertable LOOP
        EXECUTE format('SELECT array_agg(DISTINCT %I::date) FROM timeseries.%I', t.time_column, t.name || '_other') INTO days;
        PERFORM timeseries.cover(t.name, coalesce(days, '{}'));
        IF timeseries.aggregated(t.name) THEN
            EXECUTE format('INSERT INTO timeseries.touched SELECT DISTINCT %L, date_trunc(''hour'', %I) FROM public.%I', t.name, t.time_column, t.name);
        END IF;
    END LOOP;
END $$;

-- Readings of servers and of services. The columns are those of the contracts
-- datacenter-server and datacenter-application; a contract that gets another field gets
-- another column from functions/store.
SELECT timeseries.make('server_metrics', $$
    "timestamp" timestamptz, server_id text, rack_id text, datacenter_zone text,
    cpu_usage_percent double precision, memory_usage_percent double precision, memory_available_gb double precision,
    disk_usage_percent double precision, disk_read_mbps double precision, disk_write_mbps double precision,
    network_rx_mbps double precision, network_tx_mbps double precision,
    cpu_temperature_celsius double precision, power_consumption_watts double precision$$,
    '{server_id,timestamp}', 'timestamp', 'server_id', 'datacenter-server');
SELECT timeseries.make('application_metrics', $$
    "timestamp" timestamptz, service_name text, server_id text,
    request_rate_per_sec double precision, response_time_p50_ms double precision, response_time_p95_ms double precision,
    response_time_p99_ms double precision, error_rate_percent double precision,
    error_count bigint, active_connections bigint, queue_depth bigint, endpoint text$$,
    '{service_name,server_id,endpoint,timestamp}', 'timestamp', 'service_name', 'datacenter-application');

-- What models predicted, of the shop's events and of readings; see functions/predict.
-- entity is whom it is about: a server, or user and product.
SELECT timeseries.make('predictions', $$
    "timestamp" timestamptz, model text, entity text, model_version text NOT NULL,
    -- Null where there is one a class, which are in details.
    prediction double precision,
    -- What was true, if the event said so; error is prediction - actual.
    actual double precision, error double precision, prediction_error_percent double precision,
    -- 0 to 1, and an interval that holds most actual values; null where the model does not say.
    confidence_score double precision, low double precision, high double precision,
    -- Other members of the event.
    details jsonb NOT NULL,
    predicted_at timestamptz$$,
    '{model,entity,timestamp}', 'timestamp', 'entity');

-- What detectors found; see package anomaly.
SELECT timeseries.make('anomalies', $$
    "timestamp" timestamptz, entity_type text, entity_id text, anomaly_type text,
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    anomaly_score double precision NOT NULL,
    details jsonb NOT NULL,
    resolved boolean NOT NULL DEFAULT false,
    resolved_at timestamptz$$,
    '{entity_type,entity_id,anomaly_type,timestamp}', 'timestamp', 'entity_id');
CREATE INDEX ON public.anomalies ("timestamp" DESC) WHERE NOT resolved;

SELECT timeseries.aggregate('server_metrics_hourly', 'server_metrics', 'server_id', $$
    avg(cpu_usage_percent) AS avg_cpu, max(cpu_usage_percent) AS max_cpu,
    avg(memory_usage_percent) AS avg_memory, max(memory_usage_percent) AS max_memory,
    avg(cpu_temperature_celsius) AS avg_temperature, max(cpu_temperature_celsius) AS max_temperature,
    avg(power_consumption_watts) AS avg_power, count(*) AS sample_count$$);
SELECT timeseries.aggregate('application_metrics_hourly', 'application_metrics', 'service_name', $$
    avg(request_rate_per_sec) AS avg_request_rate, avg(response_time_p95_ms) AS avg_p95_latency,
    max(response_time_p99_ms) AS max_p99_latency, avg(error_rate_percent) AS avg_error_rate,
    sum(error_count)::bigint AS total_errors, count(*) AS sample_count$$);

-- Each server's latest reading of the last hour, with its averages.
CREATE VIEW public.recent_server_health AS
SELECT DISTINCT ON (server_id) server_id, rack_id, datacenter_zone,
       cpu_usage_percent, memory_usage_percent, disk_usage_percent, cpu_temperature_celsius, power_consumption_watts,
       avg(cpu_usage_percent) OVER w AS avg_cpu, avg(memory_usage_percent) OVER w AS avg_memory,
       avg(cpu_temperature_celsius) OVER w AS avg_temperature, avg(power_consumption_watts) OVER w AS avg_power,
       "timestamp" AS last_updated
FROM public.server_metrics
WHERE "timestamp" > now() - interval '1 hour'
WINDOW w AS (PARTITION BY server_id)
ORDER BY server_id, "timestamp" DESC;

CREATE VIEW public.recent_application_performance AS
SELECT service_name, avg(request_rate_per_sec) AS avg_request_rate,
       avg(response_time_p50_ms) AS avg_p50_latency, avg(response_time_p95_ms) AS avg_p95_latency, avg(response_time_p99_ms) AS avg_p99_latency,
       avg(error_rate_percent) AS avg_error_rate, sum(error_count) AS total_errors,
       max("timestamp") AS last_updated
FROM public.application_metrics
WHERE "timestamp" > now() - interval '15 minutes'
GROUP BY service_name;

-- The worst first, then the latest.
CREATE VIEW public.active_anomalies AS
SELECT * FROM public.anomalies
WHERE NOT resolved
ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low'], severity), "timestamp" DESC;

-- The predictions of power in the words of those who look after servers.
CREATE VIEW public.power_predictions AS
SELECT "timestamp", entity AS server_id, prediction AS predicted_power_watts, actual AS actual_power_watts,
       prediction_error_percent, model_version, confidence_score, created_at
FROM public.predictions
WHERE model = 'power_prediction_model';
