-- feature_store: the features as they were served, the same computed again from
-- gold, and the training set that is made of both.

-- No function wrote into the table of the first migration.
DROP TABLE feature_store.streaming_features;

-- One row a distinct event: the features that were served when it was first seen.
-- An event that comes again, or a correction of it, has the same record_hash and
-- changes nothing: what was known when it arrived stays what it was.
--
-- The table is not partitioned. Its key has to be unique over all of it, which a
-- partitioned table can promise only if the partition follows from the key, and no
-- time does that is the same at each delivery but the event's own, which may be any
-- year. Where FEATURES_RETENTION says so, functions/store deletes old rows in small
-- portions; what autovacuum frees of them is filled again.
CREATE TABLE feature_store.streaming_features (
    user_id         bigint NOT NULL,
    product_id      bigint NOT NULL,
    event_timestamp timestamp NOT NULL,
    -- When the features were made, and when the row was, both in UTC.
    processed_at    timestamp NOT NULL,
    created_timestamp timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    price           double precision,
    event_weekday   bigint,
    activity_count  bigint,
    -- Never known when features are served: the label is made by training_set.
    is_purchased    int,
    -- SHA-256 of product_id|event_time|user_id|event_type|user_session.
    record_hash     bytea PRIMARY KEY,
    event_type      text NOT NULL,
    user_session    text NOT NULL,
    category_code   text,
    brand           text,
    category_code_level1 text,
    category_code_level2 text
);
-- Rows are added at its end, and those of one batch share one entry.
CREATE INDEX streaming_features_created ON feature_store.streaming_features (created_timestamp);

-- The features of every record of an event that gold has, computed from what that
-- record said and the event's rank. Those of first_sight are what was, or should
-- have been, served; the others came again or corrected it. position is the event's.
--
-- Gold's own columns are not taken where bronze has them: a correction changes gold,
-- but not what was known before it came.
--
-- The expressions are those of package features; a test compares the two.
CREATE VIEW feature_store.recomputed_features AS
SELECT f.record_hash, f.event_id, f.arrived_at, f.checksum, f.first_sight, f.position,
       f.event_timestamp, f.event_type, f.user_session, f.user_id, f.product_id, f.category_code,
       f.brand::text AS brand,
       f.price AS price,
       extract(dow FROM f.event_timestamp)::bigint AS event_weekday,
       nullif(split_part(f.category_code, '.', 1), '') AS category_code_level1,
       nullif(split_part(f.category_code, '.', 2), '') AS category_code_level2,
       f.activity_count::bigint AS activity_count
FROM (SELECT g.record_hash, b.ce_id AS event_id, b.kafka_timestamp AS arrived_at, b.checksum, g.position,
             -- See silver.events for what a position is.
             b.kafka_partition = (g.position >> 44)::int AND b.kafka_offset = (g.position & 17592186044415) AS first_sight,
             g.event_timestamp, g.event_type, g.user_session, g.user_id, g.product_id,
             b.category_code, b.brand, b.price, g.activity_count
      FROM dwh.fact_events g JOIN bronze.events b USING (record_hash)
      WHERE b.op IS DISTINCT FROM 'd') f;

-- The training set as it was known at a time: one row each time something was put
-- into a cart, with the features of that moment and the label is_purchased, 1 if a
-- purchase of the same product in the same session followed.
--
-- Known at a time is what had arrived in Kafka by then, and what follows is what
-- arrived later in the session's partition: the order in which the live system sees
-- events, whatever times they name. So a row is what a prediction would have been
-- made from at that moment, the label is what came of it until as_of, and nothing
-- that arrived after as_of can change a row but a delete, which takes what was
-- deleted out of gold and out of the set.
--
--   since    rows that arrived later than this
--   settled  rows that arrived at least this long before as_of: give a session time
--            to end, since a purchase that is still to come is a 0
--
-- The features are those that were served, source 'served'; where none were, those
-- that gold gives, source 'recomputed'. Split the set by arrived_at.
CREATE FUNCTION feature_store.training_set(as_of timestamptz DEFAULT now(), since timestamptz DEFAULT '-infinity', settled interval DEFAULT '0')
RETURNS TABLE (
    record_hash bytea, event_timestamp timestamp, arrived_at timestamptz, user_session text, user_id bigint, product_id bigint,
    brand text, price double precision, event_weekday bigint, category_code_level1 text, category_code_level2 text, activity_count bigint,
    is_purchased int, source text)
LANGUAGE sql STABLE
-- Most of gold is read. The planner takes the three columns of the join with bronze
-- for independent of each other, expects a row, and would go through all purchases
-- for each of a million.
SET enable_nestloop = off SET work_mem = '256MB'
BEGIN ATOMIC
    WITH carts AS (
        -- A topic that was deleted and filled again may have an event in its old place.
        SELECT DISTINCT ON (r.record_hash) r.*
        FROM feature_store.recomputed_features r
        WHERE r.first_sight AND r.event_type = 'cart' AND r.arrived_at > since AND r.arrived_at <= as_of - settled
        ORDER BY r.record_hash, r.arrived_at, r.checksum
    ), purchases AS (
        SELECT g.user_session, g.product_id, max(g.position) AS last_position
        FROM dwh.fact_events g
        WHERE g.event_type = 'purchase' AND EXISTS (
            SELECT FROM bronze.events b
            WHERE b.kafka_partition = (g.position >> 44)::int AND b.kafka_offset = (g.position & 17592186044415)
                AND b.record_hash = g.record_hash AND b.op IS DISTINCT FROM 'd' AND b.kafka_timestamp <= as_of)
        GROUP BY g.user_session, g.product_id
    )
    SELECT c.record_hash, c.event_timestamp, c.arrived_at, c.user_session::text, c.user_id, c.product_id,
           CASE WHEN s.record_hash IS NULL THEN c.brand ELSE s.brand END,
           CASE WHEN s.record_hash IS NULL THEN c.price ELSE s.price END,
           CASE WHEN s.record_hash IS NULL THEN c.event_weekday ELSE s.event_weekday END,
           CASE WHEN s.record_hash IS NULL THEN c.category_code_level1 ELSE s.category_code_level1 END,
           CASE WHEN s.record_hash IS NULL THEN c.category_code_level2 ELSE s.category_code_level2 END,
           CASE WHEN s.record_hash IS NULL THEN c.activity_count ELSE s.activity_count END,
           coalesce(p.last_position > c.position, false)::int,
           CASE WHEN s.record_hash IS NULL THEN 'recomputed' ELSE 'served' END
    FROM carts c
    LEFT JOIN purchases p ON p.user_session = c.user_session AND p.product_id = c.product_id
    LEFT JOIN feature_store.streaming_features s ON s.record_hash = c.record_hash;
END;

-- What the running comparison found, a row each time there was something to compare;
-- see functions/store.
CREATE TABLE feature_store.skew_checks (
    check_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    checked_at      timestamptz NOT NULL DEFAULT now(),
    -- Served rows whose created_timestamp was after the one and up to the other.
    rows_after      timestamp NOT NULL,
    rows_until      timestamp NOT NULL,
    -- Rows by what became of them; they add up to all served rows that were looked at.
    compared        bigint NOT NULL,
    missing         bigint NOT NULL,
    unsettled       bigint NOT NULL,
    deleted         bigint NOT NULL,
    -- Of those compared: rows with any difference, and how many a feature.
    differing       bigint NOT NULL,
    differences     jsonb NOT NULL,
    -- A few of the rows that differ, with both values.
    examples        jsonb NOT NULL
);
