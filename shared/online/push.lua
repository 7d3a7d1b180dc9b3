-- Writes the features of entities that a client pushed; see package online.
--
-- KEYS: the entities. ARGV: session or user_product, which all of them are; their TTL;
-- then of each its version and the rest of its text.
local call, match, written = redis.call, string.match, 0
for i, key in ipairs(KEYS) do
  local version, rest = ARGV[2 * i + 1], ARGV[2 * i + 2]
  if ARGV[1] == 'session' then
    local old = call('HGET', key, 'f')
    local count, place = '0', nil
    if old then
      count, place = match(old, '^(%d+) (%d+) ')
    end
    if not place or tonumber(place) < tonumber(version) then
      call('HSET', key, 'f', count .. ' ' .. version .. rest)
      call('PEXPIRE', key, ARGV[2])
      written = written + 1
    end
  else
    local old = call('GET', key)
    if not old or (match(old, '^(%d+) ') or '') < version then
      call('SET', key, version .. rest, 'PX', ARGV[2])
      written = written + 1
    end
  end
end
return written
