-- Writes the features of entities that a client pushed.
--
-- KEYS: the entities. ARGV: how many arguments an entity has; then of each its
-- version, time, arrival and TTL, and its features' names and values.
local width, written = tonumber(ARGV[1]), 0
for i, key in ipairs(KEYS) do
  local at = 2 + (i - 1) * width
  local old = redis.call('HGET', key, 'v')
  if not old or old < ARGV[at] then
    redis.call('HSET', key, 'v', ARGV[at], 't', ARGV[at + 1], 'a', ARGV[at + 2], unpack(ARGV, at + 4, at + width - 1))
    redis.call('PEXPIRE', key, ARGV[at + 3])
    written = written + 1
  end
end
return written
