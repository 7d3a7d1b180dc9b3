-- What makes gold faster: where to find the events that a load changed, and an index
-- fewer.

-- The load that changed the event last. Gold takes the events of its loads by it: they
-- lie together, where looking each up by its hash was a seventh of all of gold's work.
-- Each load that changes an event comes to gold after that, so the last is enough.
-- It has no default: an older program that does not say it must not write here, since
-- gold would miss what it wrote. Its steps are tried again until a newer one does them.
ALTER TABLE silver.events ADD COLUMN load_id bigint NOT NULL DEFAULT 0;
ALTER TABLE silver.events ALTER COLUMN load_id DROP DEFAULT;

-- Events of before: if any of their loads waits for gold, the event has to come to it.
-- One that is still to be merged says so itself if it changes the event.
UPDATE silver.events s SET load_id = b.load_id
FROM (SELECT DISTINCT ON (r.record_hash) r.record_hash, r.load_id
      FROM bronze.events r JOIN etl.loads l USING (load_id)
      WHERE r.record_hash IS NOT NULL AND l.stage IN ('silver', 'gold', 'checked')
      ORDER BY r.record_hash, l.stage = 'silver' DESC, r.load_id DESC) b
WHERE s.record_hash = b.record_hash;

CREATE INDEX events_changed_by ON silver.events (load_id);

-- Purchases and carts of a session are found by idx_fact_events_session_product just as
-- well, since sessions are short, and who wants those of all sessions reads the table:
-- no query was planned with this index, and each cart and purchase paid for it.
DROP INDEX dwh.idx_fact_events_cart_purchase;
