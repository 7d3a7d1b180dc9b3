-- Of a run that is wanted because of drift: when the window began in which it was
-- detected. Rows from then on are what the model has to learn.
ALTER TABLE learning.models ADD COLUMN wanted_since timestamptz;
