CREATE SCHEMA etl;
CREATE SCHEMA bronze;
CREATE SCHEMA silver;
CREATE SCHEMA dwh;
CREATE SCHEMA feature_store;

-- etl: what was loaded, and how that went.

CREATE TABLE etl.objects (
    object_id       int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket          text NOT NULL,
    key             text NOT NULL,
    -- The generation that was loaded last; NULL before the first.
    etag            text,
    size            bigint,
    seen_at         timestamptz NOT NULL DEFAULT now(),
    loaded_at       timestamptz,
    -- Why nothing of the object could be loaded; NULL when something could.
    refused         text,
    -- How often, and when last, the sweep has asked for the object since it was loaded.
    swept           int NOT NULL DEFAULT 0,
    swept_at        timestamptz,
    UNIQUE (bucket, key)
);
CREATE INDEX objects_swept ON etl.objects (object_id) WHERE swept > 0;

-- How far the sweep has come in its walk through a prefix of a bucket.
CREATE TABLE etl.sweeps (
    bucket          text NOT NULL,
    prefix          text NOT NULL,
    -- The last key that was compared; '' at the beginning of a walk.
    after           text NOT NULL,
    swept_at        timestamptz NOT NULL,
    -- When the last walk came to the end.
    walked_at       timestamptz,
    PRIMARY KEY (bucket, prefix)
);

-- One generation of an object that had rows which no load before it had. It is what
-- the steps promote, and its number is never used again.
CREATE TABLE etl.loads (
    load_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    object_id       int NOT NULL REFERENCES etl.objects,
    etag            text NOT NULL,
    -- Lines in the object; what its writer says it wrote (NULL: it does not say);
    -- rows that were new, that were there already, and lines in quarantine.
    lines           bigint NOT NULL,
    expected        bigint,
    rows            bigint NOT NULL,
    duplicates      bigint NOT NULL,
    quarantined     bigint NOT NULL,
    -- The last step that was done, or stopped by a failed blocking check.
    stage           text NOT NULL CHECK (stage IN ('bronze', 'silver', 'gold', 'checked', 'stopped')),
    stopped_by      text,
    loaded_at       timestamptz NOT NULL DEFAULT now(),
    silver_at       timestamptz,
    gold_at         timestamptz,
    checked_at      timestamptz
);
CREATE INDEX loads_object ON etl.loads (object_id, load_id);
CREATE INDEX loads_open ON etl.loads (stage) WHERE stage <> 'checked';

-- One row an attempt. One that stays "running" has died, which the sweep notes.
CREATE TABLE etl.runs (
    run_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    step            text NOT NULL,
    bucket          text NOT NULL,
    key             text NOT NULL,
    event_id        text NOT NULL,
    state           text NOT NULL CHECK (state IN ('running', 'succeeded', 'stopped', 'refused', 'failed')),
    -- Rows that the step wrote: 0 when there was nothing new, which is a success.
    rows            bigint NOT NULL DEFAULT 0,
    seconds         double precision,
    error           text,
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at     timestamptz
);
CREATE INDEX runs_object ON etl.runs (bucket, key, run_id);
CREATE INDEX runs_running ON etl.runs (started_at) WHERE state = 'running';

-- Lines, or whole objects (line 0), that could not be loaded.
CREATE TABLE etl.quarantine (
    object_id       int NOT NULL REFERENCES etl.objects,
    line            bigint NOT NULL,
    byte_offset     bigint NOT NULL,
    reason          text NOT NULL,
    -- The beginning of the line, what is not UTF-8 replaced; '' when it was not kept.
    sample          text NOT NULL,
    seen_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (object_id, line)
);

-- Validation results in the JSON shape of Great Expectations.
CREATE TABLE etl.quality_reports (
    load_id         bigint NOT NULL REFERENCES etl.loads,
    layer           text NOT NULL,
    success         boolean NOT NULL,
    -- Whether a failed check stopped the load.
    blocked         boolean NOT NULL,
    report          jsonb NOT NULL,
    made_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (load_id, layer)
);

-- bronze: the records of the validated topic, flattened.

CREATE TABLE bronze.events (
    load_id         bigint NOT NULL,
    kafka_offset    bigint NOT NULL,
    kafka_timestamp timestamptz NOT NULL,
    -- NULL in what follows: a delete that names less than the whole row.
    product_id      bigint,
    category_id     bigint,
    user_id         bigint,
    price           double precision,
    event_time      timestamp,
    lsn             bigint,
    kafka_partition int NOT NULL,
    -- CRC-32C of the line: tells a record from another of the same offset, when a
    -- topic was deleted and began again.
    checksum        int NOT NULL,
    line            int NOT NULL,
    op              varchar(1) CHECK (op IN ('c', 'r', 'u', 'd')),
    event_type      varchar(50),
    -- SHA-256 of product_id|event_time|user_id|event_type|user_session.
    record_hash     bytea,
    user_session    varchar(255),
    category_code   varchar(255),
    brand           varchar(255),
    ce_id           text,
    PRIMARY KEY (kafka_partition, kafka_offset, checksum)
);
CREATE INDEX events_load ON bronze.events (load_id);

CREATE VIEW bronze.vw_records AS
SELECT b.event_time, b.event_type, b.product_id, b.category_id, b.category_code, b.brand, b.price, b.user_id, b.user_session,
       l.loaded_at AS processed_date, 'minio_etl'::text AS processing_pipeline, 'TRUE'::text AS valid,
       encode(b.record_hash, 'hex') AS record_hash
FROM bronze.events b JOIN etl.loads l USING (load_id)
WHERE b.op IS DISTINCT FROM 'd';

CREATE FUNCTION silver.price_tier(price double precision) RETURNS varchar LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN price < 50 THEN 'low' WHEN price < 250 THEN 'medium' WHEN price < 1000 THEN 'high' ELSE 'luxury' END;

-- silver: one row a distinct event.
--
-- A position is kafka_partition * 2^44 + kafka_offset: the order of arrival among the
-- events of a session, which share a partition. Every column but those of the hash
-- is a minimum or a maximum over the records that have come, or belongs to the
-- record with the highest version, so the order in which they come does not matter.

CREATE TABLE silver.events (
    -- Of the first and the last record that is no delete, and of the last delete.
    first_position  bigint,
    last_position   bigint,
    deleted_position bigint,
    -- Whose columns these are: the first record's, since that is what was known when
    -- the event arrived, unless there are CDC updates, the last of which corrects it.
    version         bigint NOT NULL,
    product_id      bigint NOT NULL,
    user_id         bigint NOT NULL,
    category_id     bigint,
    price           double precision,
    event_timestamp timestamp NOT NULL,
    -- Deleted, or so far only known by its delete.
    deleted         boolean NOT NULL GENERATED ALWAYS AS
                    (first_position IS NULL OR coalesce(deleted_position > last_position, false)) STORED,
    event_type      varchar(50) NOT NULL,
    record_hash     bytea PRIMARY KEY,
    user_session    varchar(255) NOT NULL,
    category_code   varchar(255),
    category_l1     varchar(255),
    category_l2     varchar(255),
    category_l3     varchar(255),
    brand           varchar(255),
    price_tier      varchar(50)
);
CREATE INDEX events_session ON silver.events (user_session);

CREATE VIEW silver.vw_events AS
SELECT s.record_hash, s.event_timestamp, s.event_timestamp::date AS event_date,
       extract(hour FROM s.event_timestamp)::int AS event_hour,
       to_char(s.event_timestamp, 'FMDay') AS day_of_week,
       s.event_type, s.user_id, s.product_id, s.category_id, s.category_code, s.category_l1, s.category_l2, s.category_l3,
       s.brand, s.price, s.price_tier, s.user_session,
       count(*) OVER w AS events_in_session, min(s.event_timestamp) OVER w AS session_start, max(s.event_timestamp) OVER w AS session_end,
       avg(s.price) OVER w AS avg_price, min(s.price) OVER w AS min_price, max(s.price) OVER w AS max_price
FROM silver.events s
WHERE NOT s.deleted
WINDOW w AS (PARTITION BY s.user_session);

-- dwh: gold. All of it is a function of silver. There are no foreign keys: a
-- step writes dimensions and facts in one transaction, and a check after it looks
-- for facts without their dimensions; locking four dimension rows a fact would
-- make loads wait for each other.

CREATE TABLE dwh.dim_user (
    user_id         bigint PRIMARY KEY,
    first_seen      timestamp NOT NULL,
    last_seen       timestamp NOT NULL
);

-- The product as it was last seen. Each value remembers when and by which event it
-- was said, the later one wins; a missing brand does not replace a known one.
CREATE TABLE dwh.dim_product (
    product_id      bigint PRIMARY KEY,
    brand           varchar(255),
    price           double precision NOT NULL,
    price_tier      varchar(50) NOT NULL,
    first_seen      timestamp NOT NULL,
    last_seen       timestamp NOT NULL,
    price_by        bytea NOT NULL,
    brand_at        timestamp,
    brand_by        bytea
);
CREATE INDEX idx_dim_product_brand ON dwh.dim_product (brand);

-- Each price at which a product was seen, and from when to when.
CREATE TABLE dwh.product_price_history (
    product_id      bigint NOT NULL,
    price           double precision NOT NULL,
    price_tier      varchar(50) NOT NULL,
    first_seen      timestamp NOT NULL,
    last_seen       timestamp NOT NULL,
    PRIMARY KEY (product_id, price)
);

CREATE TABLE dwh.dim_category (
    category_id     bigint PRIMARY KEY,
    category_code   varchar(255),
    category_l1     varchar(255),
    category_l2     varchar(255),
    category_l3     varchar(255),
    first_seen      timestamp NOT NULL,
    last_seen       timestamp NOT NULL,
    code_at         timestamp,
    code_by         bytea
);
CREATE INDEX idx_dim_category_l1 ON dwh.dim_category (category_l1);

CREATE TABLE dwh.dim_date (
    event_date      date PRIMARY KEY,
    year            int NOT NULL,
    quarter         int NOT NULL,
    month           int NOT NULL,
    day             int NOT NULL,
    iso_week        int NOT NULL,
    -- 0 is Sunday.
    weekday         int NOT NULL,
    day_of_week     varchar(50) NOT NULL,
    is_weekend      boolean NOT NULL
);

CREATE TABLE dwh.fact_events (
    -- The first eight bytes of record_hash: the same in every rebuild.
    event_id        bigint NOT NULL,
    -- The order of arrival, and of which record the columns are; see silver.events.
    position        bigint NOT NULL,
    version         bigint NOT NULL,
    user_id         bigint NOT NULL,
    product_id      bigint NOT NULL,
    category_id     bigint NOT NULL,
    price           double precision NOT NULL,
    event_timestamp timestamp NOT NULL,
    event_date      date NOT NULL,
    event_hour      int NOT NULL,
    -- Of the whole session, as far as it is known now.
    events_in_session int NOT NULL,
    -- The rank of the event among the distinct events of its session in the order
    -- of arrival: what was known when it came.
    activity_count  int NOT NULL,
    event_type      varchar(50) NOT NULL,
    record_hash     bytea PRIMARY KEY,
    user_session    varchar(255) NOT NULL,
    -- As the event said them, which the dimensions may not any more.
    category_code   varchar(255),
    brand           varchar(255)
) WITH (fillfactor = 85); -- later events of a session change events_in_session
CREATE INDEX idx_fact_events_user_id ON dwh.fact_events (user_id);
CREATE INDEX idx_fact_events_product_id ON dwh.fact_events (product_id);
CREATE INDEX idx_fact_events_category_id ON dwh.fact_events (category_id);
-- Loads come nearly in the order of dates, so a summary a block range is enough.
CREATE INDEX idx_fact_events_event_date ON dwh.fact_events USING brin (event_date);
CREATE INDEX idx_fact_events_session_product ON dwh.fact_events (user_session, product_id);
CREATE INDEX idx_fact_events_cart_purchase ON dwh.fact_events (event_type, user_session, product_id)
    WHERE event_type IN ('cart', 'purchase');

CREATE VIEW dwh.vw_user_session_summary AS
SELECT user_id, user_session, count(*) AS event_count,
       min(event_timestamp) AS session_start, max(event_timestamp) AS session_end,
       count(DISTINCT product_id) FILTER (WHERE event_type = 'view') AS unique_products_viewed,
       coalesce(sum(price::numeric) FILTER (WHERE event_type = 'purchase'), 0) AS revenue
FROM dwh.fact_events
GROUP BY user_id, user_session;

CREATE VIEW dwh.vw_category_performance AS
SELECT c.category_l1, c.category_l2, c.category_l3,
       count(*) FILTER (WHERE f.event_type = 'view') AS view_count,
       count(*) AS event_count,
       count(DISTINCT f.user_id) AS unique_users,
       avg(f.price::numeric) AS avg_price,
       count(*) FILTER (WHERE f.event_type = 'purchase') AS purchase_count,
       coalesce(sum(f.price::numeric) FILTER (WHERE f.event_type = 'purchase'), 0) AS revenue
FROM dwh.fact_events f JOIN dwh.dim_category c USING (category_id)
GROUP BY c.category_l1, c.category_l2, c.category_l3;

-- When a product's price changed, by the time of the events.
CREATE VIEW dwh.vw_product_price_changes AS
SELECT product_id, price, event_timestamp AS valid_from,
       lead(event_timestamp) OVER (PARTITION BY product_id ORDER BY event_timestamp, record_hash) AS valid_to
FROM (SELECT product_id, price, event_timestamp, record_hash,
             lag(price) OVER (PARTITION BY product_id ORDER BY event_timestamp, record_hash) AS before
      FROM dwh.fact_events) f
WHERE before IS DISTINCT FROM price;

-- A row is an event of putting into the cart with what was known when it arrived.
-- is_purchased says whether a purchase of the product followed in its session, in
-- the order of arrival.
CREATE VIEW dwh.vw_ml_purchase_prediction AS
SELECT f.record_hash, f.event_timestamp, f.user_session, f.user_id, f.product_id,
       f.price, f.brand, extract(dow FROM f.event_timestamp)::int AS event_weekday,
       nullif(split_part(f.category_code, '.', 1), '') AS category_code_level1,
       nullif(split_part(f.category_code, '.', 2), '') AS category_code_level2,
       f.activity_count,
       coalesce(f.position < p.last_purchase, false)::int AS is_purchased
FROM dwh.fact_events f
LEFT JOIN (SELECT user_session, product_id, max(position) AS last_purchase
           FROM dwh.fact_events WHERE event_type = 'purchase'
           GROUP BY user_session, product_id) p USING (user_session, product_id)
WHERE f.event_type = 'cart';

-- feature_store: the features as they were served.

CREATE TABLE feature_store.streaming_features (
    -- The id of the event whose features these are, which makes a second delivery
    -- of them known.
    event_id        text PRIMARY KEY,
    user_id         bigint NOT NULL,
    product_id      bigint NOT NULL,
    user_session    text NOT NULL,
    event_type      text NOT NULL,
    event_timestamp timestamp NOT NULL,
    price           double precision,
    brand           text,
    category_code_level1 text,
    category_code_level2 text,
    event_weekday   int NOT NULL,
    activity_count  bigint NOT NULL,
    is_purchased    int,
    created_timestamp timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);
CREATE INDEX streaming_features_entity ON feature_store.streaming_features (user_id, product_id, event_timestamp);
