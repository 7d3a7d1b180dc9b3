-- making the temporary tables
CREATE TEMP TABLE IF NOT EXISTS work (LIKE silver.events) ON COMMIT DELETE ROWS

-- making the temporary tables
CREATE TEMP TABLE IF NOT EXISTS known (record_hash bytea, product_id bigint, user_id bigint, category_id bigint, event_date date, stale boolean) ON COMMIT DELETE ROWS

-- making the temporary tables
CREATE TEMP TABLE IF NOT EXISTS changed (record_hash bytea, product_id bigint, user_id bigint, category_id bigint, event_date date) ON COMMIT DELETE ROWS

-- making the temporary tables
CREATE TEMP TABLE IF NOT EXISTS ranks (record_hash bytea, activity_count int, events_in_session int) ON COMMIT DELETE ROWS

-- making the temporary tables
CREATE TEMP TABLE IF NOT EXISTS others (LIKE pg_temp.ranks) ON COMMIT DELETE ROWS

-- finding the events that the loads changed last. What another load changed since is
-- found by that one's step, which is still to come.
INSERT INTO pg_temp.work
SELECT * FROM silver.events WHERE load_id = ANY ($1::bigint[])

-- finding the events that have a fact already
INSERT INTO pg_temp.known
SELECT f.record_hash, f.product_id, f.user_id, f.category_id, f.event_date, w.deleted OR f.version <> w.version OR f.position <> w.first_position
FROM pg_temp.work w JOIN dwh.fact_events f USING (record_hash)

-- finding the facts that are no longer so: of deleted events, or of events that
-- another record describes now
INSERT INTO pg_temp.changed
SELECT record_hash, product_id, user_id, category_id, event_date FROM pg_temp.known WHERE stale

-- ranking the events of all sessions that the loads touch. An event that was deleted
-- later counts for the ranks, since it was there when the others arrived, but not
-- for the session as it is known now.
-- The sessions are looked up one by one (OFFSET 0), since the planner would read the
-- whole table, and ranked all at once.
INSERT INTO pg_temp.ranks
SELECT record_hash, activity_count, events_in_session
FROM (
    SELECT e.record_hash, e.deleted,
        row_number() OVER (PARTITION BY w.user_session ORDER BY e.first_position, e.record_hash) AS activity_count,
        count(*) FILTER (WHERE NOT e.deleted) OVER (PARTITION BY w.user_session) AS events_in_session
    FROM (SELECT DISTINCT user_session FROM pg_temp.work) w CROSS JOIN LATERAL (
        SELECT record_hash, first_position, deleted FROM silver.events
        WHERE user_session = w.user_session AND first_position IS NOT NULL OFFSET 0
    ) e
) r
WHERE NOT deleted

-- leaving out events that another transaction deleted or moved to another session since
-- they were found: their own load, which is still to come here, says what they are now.
-- Without a rank they get no fact, and so must leave no trace elsewhere.
DELETE FROM pg_temp.work w
WHERE NOT w.deleted AND NOT EXISTS (SELECT FROM pg_temp.ranks r WHERE r.record_hash = w.record_hash)

-- setting apart the ranks of events that may have a fact already: those of other
-- loads, and those that came again
INSERT INTO pg_temp.others
SELECT r.* FROM pg_temp.ranks r
WHERE NOT EXISTS (SELECT FROM pg_temp.work w WHERE w.record_hash = r.record_hash)
UNION ALL
SELECT r.* FROM pg_temp.known k JOIN pg_temp.ranks r USING (record_hash) WHERE NOT k.stale

-- learning how many there are
ANALYZE pg_temp.others

-- learning that there is mostly nothing in it, which the planner does not expect
ANALYZE pg_temp.changed

-- removing facts
DELETE FROM dwh.fact_events f USING pg_temp.changed c WHERE f.record_hash = c.record_hash

-- adding facts, session by session, so that what goes into the indexes of sessions and
-- users goes into few of their pages. No other transaction adds any at the same time.
INSERT INTO dwh.fact_events (event_id, position, version, user_id, product_id, category_id, price, event_timestamp, event_date, event_hour,
    events_in_session, activity_count, event_type, record_hash, user_session, category_code, brand)
SELECT ('x' || encode(substr(w.record_hash, 1, 8), 'hex'))::bit(64)::bigint, w.first_position, w.version, w.user_id, w.product_id, w.category_id,
    w.price, w.event_timestamp, w.event_timestamp::date, extract(hour FROM w.event_timestamp)::int,
    r.events_in_session, r.activity_count, w.event_type, w.record_hash, w.user_session, w.category_code, w.brand
FROM pg_temp.work w JOIN pg_temp.ranks r USING (record_hash)
WHERE NOT w.deleted AND NOT EXISTS (SELECT FROM pg_temp.known k WHERE k.record_hash = w.record_hash AND NOT k.stale)
ORDER BY w.user_session, w.first_position

-- correcting the sessions' other facts
UPDATE dwh.fact_events f SET events_in_session = r.events_in_session, activity_count = r.activity_count
FROM pg_temp.others r
WHERE f.record_hash = r.record_hash AND (f.events_in_session <> r.events_in_session OR f.activity_count <> r.activity_count)

-- forgetting what dim_user knows from facts that were removed
DELETE FROM dwh.dim_user d WHERE d.user_id IN (SELECT user_id FROM pg_temp.changed)

-- forgetting what dim_product knows from facts that were removed
DELETE FROM dwh.dim_product d WHERE d.product_id IN (SELECT product_id FROM pg_temp.changed)

-- forgetting what product_price_history knows from facts that were removed
DELETE FROM dwh.product_price_history d WHERE d.product_id IN (SELECT product_id FROM pg_temp.changed)

-- forgetting what dim_category knows from facts that were removed
DELETE FROM dwh.dim_category d WHERE d.category_id IN (SELECT category_id FROM pg_temp.changed)

-- forgetting days without facts
DELETE FROM dwh.dim_date d WHERE d.event_date IN (SELECT event_date FROM pg_temp.changed)
    AND NOT EXISTS (SELECT FROM dwh.fact_events f WHERE f.event_date = d.event_date)

-- adding users
INSERT INTO dwh.dim_user AS d (user_id, first_seen, last_seen)
SELECT user_id, min(event_timestamp), max(event_timestamp)
FROM (
    SELECT user_id, event_timestamp FROM pg_temp.work WHERE NOT deleted
    UNION ALL
    SELECT user_id, event_timestamp FROM dwh.fact_events WHERE user_id IN (SELECT user_id FROM pg_temp.changed)
) s
GROUP BY user_id
ON CONFLICT (user_id) DO UPDATE SET
    first_seen = least(d.first_seen, excluded.first_seen), last_seen = greatest(d.last_seen, excluded.last_seen)
WHERE excluded.first_seen < d.first_seen OR excluded.last_seen > d.last_seen

-- adding products. Only rows at the latest times need to be put in order: sorting them
-- all costs several times what finding the times does.
WITH s AS MATERIALIZED (
    SELECT product_id, brand, price, event_timestamp, record_hash FROM pg_temp.work WHERE NOT deleted
    UNION ALL
    SELECT product_id, brand, price, event_timestamp, record_hash FROM dwh.fact_events WHERE product_id IN (SELECT product_id FROM pg_temp.changed)
), seen AS MATERIALIZED (
    SELECT product_id, min(event_timestamp) AS first_seen, max(event_timestamp) AS last_seen, max(event_timestamp) FILTER (WHERE brand IS NOT NULL) AS brand_at
    FROM s GROUP BY product_id
)
INSERT INTO dwh.dim_product AS d (product_id, brand, price, price_tier, first_seen, last_seen, price_by, brand_at, brand_by)
SELECT p.product_id, b.brand, p.price, silver.price_tier(p.price), p.first_seen, p.last_seen, p.record_hash, b.brand_at, b.record_hash
FROM (
    SELECT DISTINCT ON (product_id) product_id, s.price, seen.first_seen, seen.last_seen, s.record_hash
    FROM s JOIN seen USING (product_id) WHERE s.event_timestamp = seen.last_seen ORDER BY product_id, s.record_hash DESC
) p LEFT JOIN (
    SELECT DISTINCT ON (product_id) product_id, s.brand, seen.brand_at, s.record_hash
    FROM s JOIN seen USING (product_id) WHERE s.event_timestamp = seen.brand_at AND s.brand IS NOT NULL ORDER BY product_id, s.record_hash DESC
) b USING (product_id)
ON CONFLICT (product_id) DO UPDATE SET
    first_seen = least(d.first_seen, excluded.first_seen),
    price = CASE WHEN (excluded.last_seen, excluded.price_by) > (d.last_seen, d.price_by) THEN excluded.price ELSE d.price END,
    price_tier = CASE WHEN (excluded.last_seen, excluded.price_by) > (d.last_seen, d.price_by) THEN excluded.price_tier ELSE d.price_tier END,
    price_by = CASE WHEN (excluded.last_seen, excluded.price_by) > (d.last_seen, d.price_by) THEN excluded.price_by ELSE d.price_by END,
    last_seen = greatest(d.last_seen, excluded.last_seen),
    brand = CASE WHEN d.brand_at IS NULL OR (excluded.brand_at, excluded.brand_by) > (d.brand_at, d.brand_by) THEN excluded.brand ELSE d.brand END,
    brand_by = CASE WHEN d.brand_at IS NULL OR (excluded.brand_at, excluded.brand_by) > (d.brand_at, d.brand_by) THEN excluded.brand_by ELSE d.brand_by END,
    brand_at = greatest(d.brand_at, excluded.brand_at)
WHERE excluded.first_seen < d.first_seen OR (excluded.last_seen, excluded.price_by) > (d.last_seen, d.price_by)
    OR excluded.brand_at IS NOT NULL AND (d.brand_at IS NULL OR (excluded.brand_at, excluded.brand_by) > (d.brand_at, d.brand_by))

-- adding prices
INSERT INTO dwh.product_price_history AS d (product_id, price, price_tier, first_seen, last_seen)
SELECT product_id, price, silver.price_tier(price), min(event_timestamp), max(event_timestamp)
FROM (
    SELECT product_id, price, event_timestamp FROM pg_temp.work WHERE NOT deleted
    UNION ALL
    SELECT product_id, price, event_timestamp FROM dwh.fact_events WHERE product_id IN (SELECT product_id FROM pg_temp.changed)
) s
GROUP BY product_id, price
ON CONFLICT (product_id, price) DO UPDATE SET
    first_seen = least(d.first_seen, excluded.first_seen), last_seen = greatest(d.last_seen, excluded.last_seen)
WHERE excluded.first_seen < d.first_seen OR excluded.last_seen > d.last_seen

-- adding categories, in the same way
WITH s AS MATERIALIZED (
    SELECT category_id, category_code, event_timestamp, record_hash FROM pg_temp.work WHERE NOT deleted
    UNION ALL
    SELECT category_id, category_code, event_timestamp, record_hash FROM dwh.fact_events WHERE category_id IN (SELECT category_id FROM pg_temp.changed)
), seen AS MATERIALIZED (
    SELECT category_id, min(event_timestamp) AS first_seen, max(event_timestamp) AS last_seen, max(event_timestamp) FILTER (WHERE category_code IS NOT NULL) AS code_at
    FROM s GROUP BY category_id
)
INSERT INTO dwh.dim_category AS d (category_id, category_code, category_l1, category_l2, category_l3, first_seen, last_seen, code_at, code_by)
SELECT p.category_id, c.category_code, nullif(split_part(c.category_code, '.', 1), ''), nullif(split_part(c.category_code, '.', 2), ''),
    nullif(split_part(c.category_code, '.', 3), ''), p.first_seen, p.last_seen, p.code_at, c.record_hash
FROM seen p
LEFT JOIN (
    SELECT DISTINCT ON (category_id) category_id, s.category_code, s.record_hash
    FROM s JOIN seen USING (category_id) WHERE s.event_timestamp = seen.code_at AND s.category_code IS NOT NULL ORDER BY category_id, s.record_hash DESC
) c USING (category_id)
ON CONFLICT (category_id) DO UPDATE SET
    first_seen = least(d.first_seen, excluded.first_seen), last_seen = greatest(d.last_seen, excluded.last_seen),
    category_code = CASE WHEN d.code_at IS NULL OR (excluded.code_at, excluded.code_by) > (d.code_at, d.code_by) THEN excluded.category_code ELSE d.category_code END,
    category_l1 = CASE WHEN d.code_at IS NULL OR (excluded.code_at, excluded.code_by) > (d.code_at, d.code_by) THEN excluded.category_l1 ELSE d.category_l1 END,
    category_l2 = CASE WHEN d.code_at IS NULL OR (excluded.code_at, excluded.code_by) > (d.code_at, d.code_by) THEN excluded.category_l2 ELSE d.category_l2 END,
    category_l3 = CASE WHEN d.code_at IS NULL OR (excluded.code_at, excluded.code_by) > (d.code_at, d.code_by) THEN excluded.category_l3 ELSE d.category_l3 END,
    code_by = CASE WHEN d.code_at IS NULL OR (excluded.code_at, excluded.code_by) > (d.code_at, d.code_by) THEN excluded.code_by ELSE d.code_by END,
    code_at = greatest(d.code_at, excluded.code_at)
WHERE excluded.first_seen < d.first_seen OR excluded.last_seen > d.last_seen
    OR excluded.code_at IS NOT NULL AND (d.code_at IS NULL OR (excluded.code_at, excluded.code_by) > (d.code_at, d.code_by))

-- adding days
INSERT INTO dwh.dim_date (event_date, year, quarter, month, day, iso_week, weekday, day_of_week, is_weekend)
SELECT d, extract(year FROM d), extract(quarter FROM d), extract(month FROM d), extract(day FROM d), extract(week FROM d),
    extract(dow FROM d), to_char(d, 'FMDay'), extract(isodow FROM d) > 5
FROM (SELECT DISTINCT event_timestamp::date AS d FROM pg_temp.work WHERE NOT deleted) days
ON CONFLICT DO NOTHING
