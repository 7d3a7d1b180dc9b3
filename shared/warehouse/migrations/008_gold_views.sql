-- What people ask of gold: views for sales, the way to a purchase and categories, and
-- the comments that document all of gold. The README beside the migrations is made from
-- the comments; a business intelligence tool shows them beside its columns.

-- Names for people: what nobody named is 'unknown', so that it is a group of its own in
-- a chart and not left out by a filter.

CREATE VIEW dwh.vw_sales AS
SELECT f.event_id, f.event_timestamp AS sold_at, f.event_date, f.event_hour,
       d.day_of_week, d.is_weekend,
       f.user_id, f.user_session, f.product_id,
       coalesce(f.brand, p.brand, 'unknown') AS brand,
       coalesce(c.category_l1, 'unknown') AS category_l1,
       coalesce(c.category_l2, 'unknown') AS category_l2,
       coalesce(c.category_l3, 'unknown') AS category_l3,
       silver.price_tier(f.price) AS price_tier,
       f.price::numeric AS revenue
FROM dwh.fact_events f
JOIN dwh.dim_date d USING (event_date)
JOIN dwh.dim_product p USING (product_id)
JOIN dwh.dim_category c USING (category_id)
WHERE f.event_type = 'purchase';

-- The category is that of the product's last event in the session: a product is rarely
-- in two, and one row a product and session is what can be counted.
CREATE VIEW dwh.vw_product_interest AS
SELECT i.user_session, i.product_id, i.user_id, i.first_seen, i.first_seen::date AS event_date,
       coalesce(i.brand, p.brand, 'unknown') AS brand,
       coalesce(c.category_l1, 'unknown') AS category_l1,
       coalesce(c.category_l2, 'unknown') AS category_l2,
       coalesce(c.category_l3, 'unknown') AS category_l3,
       silver.price_tier(i.price) AS price_tier, i.price,
       i.views, i.carts, i.removals, i.purchases, i.revenue,
       i.carts > 0 OR i.purchases > 0 AS reached_cart,
       i.purchases > 0 AS reached_purchase,
       i.carts > 0 AND i.purchases = 0 AS abandoned,
       extract(epoch FROM i.first_purchase - i.first_seen) / 60 AS minutes_to_purchase
FROM (SELECT f.user_session, f.product_id,
             (array_agg(f.user_id ORDER BY f.position DESC))[1] AS user_id,
             (array_agg(f.category_id ORDER BY f.position DESC))[1] AS category_id,
             (array_agg(f.price ORDER BY f.position DESC))[1] AS price,
             (array_agg(f.brand ORDER BY f.position DESC))[1] AS brand,
             min(f.event_timestamp) AS first_seen,
             min(f.event_timestamp) FILTER (WHERE f.event_type = 'purchase') AS first_purchase,
             count(*) FILTER (WHERE f.event_type = 'view') AS views,
             count(*) FILTER (WHERE f.event_type = 'cart') AS carts,
             count(*) FILTER (WHERE f.event_type = 'remove_from_cart') AS removals,
             count(*) FILTER (WHERE f.event_type = 'purchase') AS purchases,
             coalesce(sum(f.price::numeric) FILTER (WHERE f.event_type = 'purchase'), 0) AS revenue
      FROM dwh.fact_events f
      GROUP BY f.user_session, f.product_id) i
JOIN dwh.dim_product p USING (product_id)
JOIN dwh.dim_category c USING (category_id);

CREATE VIEW dwh.vw_funnel AS
SELECT s.step_number, s.step, i.event_date, i.user_session, i.product_id, i.user_id,
       i.brand, i.category_l1, i.category_l2, i.category_l3, i.price_tier
FROM dwh.vw_product_interest i
CROSS JOIN LATERAL (VALUES (1, 'looked at', true), (2, 'put into the cart', i.reached_cart), (3, 'bought', i.reached_purchase)) s (step_number, step, reached)
WHERE s.reached;

CREATE VIEW dwh.vw_category_daily AS
SELECT f.event_date,
       coalesce(c.category_l1, 'unknown') AS category_l1,
       coalesce(c.category_l2, 'unknown') AS category_l2,
       coalesce(c.category_l3, 'unknown') AS category_l3,
       count(*) AS events,
       count(*) FILTER (WHERE f.event_type = 'view') AS views,
       count(*) FILTER (WHERE f.event_type = 'cart') AS carts,
       count(*) FILTER (WHERE f.event_type = 'remove_from_cart') AS removals,
       count(*) FILTER (WHERE f.event_type = 'purchase') AS purchases,
       count(DISTINCT f.user_id) AS users,
       count(DISTINCT f.user_session) AS sessions,
       count(DISTINCT f.product_id) AS products,
       coalesce(sum(f.price::numeric) FILTER (WHERE f.event_type = 'purchase'), 0) AS revenue
FROM dwh.fact_events f JOIN dwh.dim_category c USING (category_id)
GROUP BY f.event_date, coalesce(c.category_l1, 'unknown'), coalesce(c.category_l2, 'unknown'), coalesce(c.category_l3, 'unknown');

COMMENT ON SCHEMA dwh IS 'Gold: checked dimensions and facts of the shop, and views of them';

COMMENT ON TABLE dwh.fact_events IS 'One row a distinct event of the shop';
COMMENT ON TABLE dwh.dim_user IS 'Users, with when they were first and last seen';
COMMENT ON TABLE dwh.dim_product IS 'Products as they were last seen';
COMMENT ON TABLE dwh.dim_category IS 'Categories as they were last seen, their code in its parts';
COMMENT ON TABLE dwh.dim_date IS 'The days that have events, without the hour';
COMMENT ON TABLE dwh.product_price_history IS 'Each price at which a product was seen, and from when to when';

COMMENT ON VIEW dwh.vw_sales IS 'One row a purchase, with what people group sales by';
COMMENT ON COLUMN dwh.vw_sales.event_id IS 'Of the purchase in fact_events';
COMMENT ON COLUMN dwh.vw_sales.sold_at IS 'When, UTC';
COMMENT ON COLUMN dwh.vw_sales.event_date IS 'Day of the purchase, UTC';
COMMENT ON COLUMN dwh.vw_sales.event_hour IS 'Hour of the day, 0 to 23, UTC';
COMMENT ON COLUMN dwh.vw_sales.day_of_week IS 'Name of the day';
COMMENT ON COLUMN dwh.vw_sales.is_weekend IS 'Saturday or Sunday';
COMMENT ON COLUMN dwh.vw_sales.user_id IS 'Who bought';
COMMENT ON COLUMN dwh.vw_sales.user_session IS 'In which session';
COMMENT ON COLUMN dwh.vw_sales.product_id IS 'What';
COMMENT ON COLUMN dwh.vw_sales.brand IS 'As the purchase said it, else as the product was last seen, else unknown';
COMMENT ON COLUMN dwh.vw_sales.category_l1 IS 'First part of the category''s code; unknown where there is none';
COMMENT ON COLUMN dwh.vw_sales.category_l2 IS 'Second part';
COMMENT ON COLUMN dwh.vw_sales.category_l3 IS 'Third part';
COMMENT ON COLUMN dwh.vw_sales.price_tier IS 'low below 50, medium below 250, high below 1000, else luxury';
COMMENT ON COLUMN dwh.vw_sales.revenue IS 'Price of the purchase, in the shop''s currency; an event is one unit';

COMMENT ON VIEW dwh.vw_product_interest IS 'One row a product and session: how far the session went with the product';
COMMENT ON COLUMN dwh.vw_product_interest.user_session IS 'The session';
COMMENT ON COLUMN dwh.vw_product_interest.product_id IS 'The product';
COMMENT ON COLUMN dwh.vw_product_interest.user_id IS 'Who';
COMMENT ON COLUMN dwh.vw_product_interest.first_seen IS 'First event of the product in the session, UTC';
COMMENT ON COLUMN dwh.vw_product_interest.event_date IS 'Its day';
COMMENT ON COLUMN dwh.vw_product_interest.brand IS 'As the last event of the two said it, else as the product was last seen, else unknown';
COMMENT ON COLUMN dwh.vw_product_interest.category_l1 IS 'First part of the code of the category of their last event; unknown where there is none';
COMMENT ON COLUMN dwh.vw_product_interest.category_l2 IS 'Second part';
COMMENT ON COLUMN dwh.vw_product_interest.category_l3 IS 'Third part';
COMMENT ON COLUMN dwh.vw_product_interest.price_tier IS 'low below 50, medium below 250, high below 1000, else luxury';
COMMENT ON COLUMN dwh.vw_product_interest.price IS 'Price in their last event';
COMMENT ON COLUMN dwh.vw_product_interest.views IS 'Times looked at';
COMMENT ON COLUMN dwh.vw_product_interest.carts IS 'Times put into the cart';
COMMENT ON COLUMN dwh.vw_product_interest.removals IS 'Times taken out of it';
COMMENT ON COLUMN dwh.vw_product_interest.purchases IS 'Times bought';
COMMENT ON COLUMN dwh.vw_product_interest.revenue IS 'Sum of the purchases'' prices';
COMMENT ON COLUMN dwh.vw_product_interest.reached_cart IS 'Put into the cart, or bought, which implies it';
COMMENT ON COLUMN dwh.vw_product_interest.reached_purchase IS 'Bought';
COMMENT ON COLUMN dwh.vw_product_interest.abandoned IS 'Put into the cart and not bought in the session';
COMMENT ON COLUMN dwh.vw_product_interest.minutes_to_purchase IS 'From the first event to the first purchase; null without one';

COMMENT ON VIEW dwh.vw_funnel IS 'vw_product_interest with one row for each step that was reached: count rows by step';
COMMENT ON COLUMN dwh.vw_funnel.step_number IS '1, 2, 3';
COMMENT ON COLUMN dwh.vw_funnel.step IS 'looked at, put into the cart, bought; who reached a step has a row for those before it too';
COMMENT ON COLUMN dwh.vw_funnel.event_date IS 'Day of the first event of product and session';
COMMENT ON COLUMN dwh.vw_funnel.user_session IS 'The session';
COMMENT ON COLUMN dwh.vw_funnel.product_id IS 'The product';
COMMENT ON COLUMN dwh.vw_funnel.user_id IS 'Who';
COMMENT ON COLUMN dwh.vw_funnel.brand IS 'As in vw_product_interest';
COMMENT ON COLUMN dwh.vw_funnel.category_l1 IS 'First part of the category''s code; unknown where there is none';
COMMENT ON COLUMN dwh.vw_funnel.category_l2 IS 'Second part';
COMMENT ON COLUMN dwh.vw_funnel.category_l3 IS 'Third part';
COMMENT ON COLUMN dwh.vw_funnel.price_tier IS 'low below 50, medium below 250, high below 1000, else luxury';

COMMENT ON VIEW dwh.vw_category_daily IS 'One row a day and category. Users, sessions and products are distinct within the row: do not add them up';
COMMENT ON COLUMN dwh.vw_category_daily.event_date IS 'Day of the events, UTC';
COMMENT ON COLUMN dwh.vw_category_daily.category_l1 IS 'First part of the category''s code; unknown where there is none';
COMMENT ON COLUMN dwh.vw_category_daily.category_l2 IS 'Second part';
COMMENT ON COLUMN dwh.vw_category_daily.category_l3 IS 'Third part';
COMMENT ON COLUMN dwh.vw_category_daily.events IS 'Events of all types';
COMMENT ON COLUMN dwh.vw_category_daily.views IS 'Events of type view';
COMMENT ON COLUMN dwh.vw_category_daily.carts IS 'Events of type cart';
COMMENT ON COLUMN dwh.vw_category_daily.removals IS 'Events of type remove_from_cart';
COMMENT ON COLUMN dwh.vw_category_daily.purchases IS 'Events of type purchase';
COMMENT ON COLUMN dwh.vw_category_daily.users IS 'Distinct users';
COMMENT ON COLUMN dwh.vw_category_daily.sessions IS 'Distinct sessions';
COMMENT ON COLUMN dwh.vw_category_daily.products IS 'Distinct products';
COMMENT ON COLUMN dwh.vw_category_daily.revenue IS 'Sum of the purchases'' prices';

COMMENT ON VIEW dwh.vw_category_performance IS 'One row a category, over all time';
COMMENT ON COLUMN dwh.vw_category_performance.category_l1 IS 'First part of the category''s code; null where there is none';
COMMENT ON COLUMN dwh.vw_category_performance.category_l2 IS 'Second part';
COMMENT ON COLUMN dwh.vw_category_performance.category_l3 IS 'Third part';
COMMENT ON COLUMN dwh.vw_category_performance.view_count IS 'Events of type view';
COMMENT ON COLUMN dwh.vw_category_performance.event_count IS 'Events of all types';
COMMENT ON COLUMN dwh.vw_category_performance.unique_users IS 'Distinct users';
COMMENT ON COLUMN dwh.vw_category_performance.avg_price IS 'Mean of the prices that the events said';
COMMENT ON COLUMN dwh.vw_category_performance.purchase_count IS 'Events of type purchase';
COMMENT ON COLUMN dwh.vw_category_performance.revenue IS 'Sum of the purchases'' prices';

COMMENT ON VIEW dwh.vw_user_session_summary IS 'One row a user and session';
COMMENT ON COLUMN dwh.vw_user_session_summary.user_id IS 'Who';
COMMENT ON COLUMN dwh.vw_user_session_summary.user_session IS 'The session';
COMMENT ON COLUMN dwh.vw_user_session_summary.event_count IS 'Its events';
COMMENT ON COLUMN dwh.vw_user_session_summary.session_start IS 'Time of the first, UTC';
COMMENT ON COLUMN dwh.vw_user_session_summary.session_end IS 'Time of the last, UTC';
COMMENT ON COLUMN dwh.vw_user_session_summary.unique_products_viewed IS 'Distinct products looked at';
COMMENT ON COLUMN dwh.vw_user_session_summary.revenue IS 'Sum of the purchases'' prices';

COMMENT ON VIEW dwh.vw_product_price_changes IS 'One row each time that a product''s price changed, by the time of the events';
COMMENT ON COLUMN dwh.vw_product_price_changes.product_id IS 'The product';
COMMENT ON COLUMN dwh.vw_product_price_changes.price IS 'The price';
COMMENT ON COLUMN dwh.vw_product_price_changes.valid_from IS 'First event with it, UTC';
COMMENT ON COLUMN dwh.vw_product_price_changes.valid_to IS 'First event with another one; null while it holds';

COMMENT ON VIEW dwh.vw_ml_purchase_prediction IS 'One row each time something was put into a cart, with what was known then and whether it was bought';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.record_hash IS 'SHA-256 of product_id|event_time|user_id|event_type|user_session';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.event_timestamp IS 'When, UTC';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.user_session IS 'The session';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.user_id IS 'Who';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.product_id IS 'What';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.price IS 'As the event said it';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.brand IS 'As the event said it';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.event_weekday IS '0 is Sunday';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.category_code_level1 IS 'First part of the category''s code as the event said it';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.category_code_level2 IS 'Second part';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.activity_count IS 'Events of the session up to this one, in the order of arrival';
COMMENT ON COLUMN dwh.vw_ml_purchase_prediction.is_purchased IS '1 if a purchase of the product arrived later in the session';
