-- KEYS: states, then the counter of models. ARGV: how long states live in ms, then for
-- each the version that has to be there, 8 bytes or none, and the new state.
local n = #KEYS - 1
for i = 1, n do
  if redis.call('GETRANGE', KEYS[i], 0, 7) ~= ARGV[2 * i] then
    return redis.error_reply('STALE another process has written')
  end
end
for i = 1, n do
  redis.call('SET', KEYS[i], ARGV[2 * i + 1], 'PX', ARGV[1])
end
return redis.call('GET', KEYS[n + 1]) or ''
