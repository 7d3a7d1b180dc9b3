-- merging the records of loads into the distinct events; see silver.events for why
-- the order in which loads come does not matter. Sorted by hash, so that two loads
-- with the same events wait for each other rather than deadlock. What has changed is
-- put aside, to be checked.
WITH merged AS (INSERT INTO silver.events AS s (record_hash, load_id, version, first_position, last_position, deleted_position,
    event_timestamp, event_type, product_id, user_id, user_session,
    category_id, category_code, category_l1, category_l2, category_l3, brand, price, price_tier)
SELECT DISTINCT ON (b.record_hash) b.record_hash, b.load_id, b.version,
    coalesce(d.first_position, CASE WHEN NOT b.is_delete THEN b.position END),
    coalesce(d.last_position, CASE WHEN NOT b.is_delete THEN b.position END),
    coalesce(d.deleted_position, CASE WHEN b.is_delete THEN b.position END),
    b.event_time, b.event_type, b.product_id, b.user_id, b.user_session,
    b.category_id, b.category_code,
    nullif(split_part(b.category_code, '.', 1), ''), nullif(split_part(b.category_code, '.', 2), ''), nullif(split_part(b.category_code, '.', 3), ''),
    b.brand, b.price, silver.price_tier(b.price)
FROM (
    SELECT r.*, p.position, coalesce(r.op = 'd', false) AS is_delete,
        CASE WHEN r.op = 'd' THEN -9223372036854775808 WHEN r.op = 'u' THEN p.position ELSE -1 - p.position END AS version
    FROM bronze.events r, LATERAL (SELECT (r.kafka_partition::bigint << 44) + r.kafka_offset AS position) p
    WHERE r.load_id = ANY ($1::bigint[]) AND r.record_hash IS NOT NULL
) b
-- Few events have several records in the loads: a window over all rows would cost as
-- much as writing them does.
LEFT JOIN (
    SELECT r.record_hash,
        min(p.position) FILTER (WHERE r.op IS DISTINCT FROM 'd') AS first_position,
        max(p.position) FILTER (WHERE r.op IS DISTINCT FROM 'd') AS last_position,
        max(p.position) FILTER (WHERE r.op = 'd') AS deleted_position
    FROM bronze.events r, LATERAL (SELECT (r.kafka_partition::bigint << 44) + r.kafka_offset AS position) p
    WHERE r.load_id = ANY ($1::bigint[]) AND r.record_hash IS NOT NULL
    GROUP BY r.record_hash HAVING count(*) > 1
) d USING (record_hash)
ORDER BY b.record_hash, b.version DESC, b.checksum
ON CONFLICT (record_hash) DO UPDATE SET
    load_id = excluded.load_id,
    first_position = least(s.first_position, excluded.first_position),
    last_position = greatest(s.last_position, excluded.last_position),
    deleted_position = greatest(s.deleted_position, excluded.deleted_position),
    version = greatest(s.version, excluded.version),
    category_id = CASE WHEN excluded.version > s.version THEN excluded.category_id ELSE s.category_id END,
    category_code = CASE WHEN excluded.version > s.version THEN excluded.category_code ELSE s.category_code END,
    category_l1 = CASE WHEN excluded.version > s.version THEN excluded.category_l1 ELSE s.category_l1 END,
    category_l2 = CASE WHEN excluded.version > s.version THEN excluded.category_l2 ELSE s.category_l2 END,
    category_l3 = CASE WHEN excluded.version > s.version THEN excluded.category_l3 ELSE s.category_l3 END,
    brand = CASE WHEN excluded.version > s.version THEN excluded.brand ELSE s.brand END,
    price = CASE WHEN excluded.version > s.version THEN excluded.price ELSE s.price END,
    price_tier = CASE WHEN excluded.version > s.version THEN excluded.price_tier ELSE s.price_tier END
WHERE excluded.version > s.version
    OR least(s.first_position, excluded.first_position) IS DISTINCT FROM s.first_position
    OR greatest(s.last_position, excluded.last_position) IS DISTINCT FROM s.last_position
    OR greatest(s.deleted_position, excluded.deleted_position) IS DISTINCT FROM s.deleted_position
RETURNING s.*)
INSERT INTO pg_temp.batch_silver SELECT * FROM merged
