-- Assigns ranks and writes entities; see package online. All of it or nothing.
--
-- KEYS: f2:epoch, then of each event its session's and its user_product's key.
-- ARGV: 1 if there has to be an epoch; how long arrivals have one expiry, in
-- milliseconds; then of each event one packed text, see (*batch).add, and the values of
-- the session's and the user_product's features.
local call, sub, match, floor = redis.call, string.sub, string.match, math.floor

if ARGV[1] == '1' and call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('EMPTY the online store has no epoch')
end
local slack = tonumber(ARGV[2])
local answer, written = {}, 0
for i = 1, (#KEYS - 1) / 2 do
  local session, pair, at = KEYS[2 * i], KEYS[2 * i + 1], 3 * i
  local packed = ARGV[at]
  local hash, time, tie, arrival = sub(packed, 1, 16), sub(packed, 17, 34), sub(packed, 35, 44), sub(packed, 45, 57)
  local sessionTTL, pairTTL = tonumber(sub(packed, 58, 68)), tonumber(sub(packed, 69, 79))
  local keep, correction = sub(packed, 80, 80) == '1', sub(packed, 81, 81) == '1'
  local known, change = tonumber(sub(packed, 82, 90)), sub(packed, 91)

  local had = call('HMGET', session, 'f', hash)
  local f, rank = had[1], had[2] and tonumber(had[2])
  local count, place, before, since = 0, -1, '', nil
  if f then
    count, place, before, since = match(f, '^(%d+) (%d+) (%d*) %d+ (%d+) ')
    if not count then
      return redis.error_reply('ERR ' .. session .. ' holds no features')
    end
    count, place, since = tonumber(count), tonumber(place), tonumber(since)
  end
  local new = not rank
  if new then
    rank = known > 0 and known or count + 1
  end
  answer[i] = rank
  new = new and keep

  local text = string.format('%d', rank)
  local newer = place < rank or place == rank and (before < change or (correction and before == change))
  if new or newer then
    if new and rank > count then
      count = rank
    end
    if newer then
      f = string.format('%d', count) .. ' ' .. text .. ' ' .. change .. ' ' .. time .. ' ' .. arrival .. ' ' .. ARGV[at + 1] .. text
      written = written + 1
    else
      f = string.format('%d', count) .. match(f, '^%d+(.*)$')
    end
    if new then
      call('HSET', session, 'f', f, hash, text)
    else
      call('HSET', session, 'f', f)
    end
    if known > 0 then
      if call('PTTL', session) < sessionTTL then
        call('PEXPIRE', session, sessionTTL)
      end
    elseif not newer or not since or floor(since / slack) ~= floor(tonumber(arrival) / slack) then
      call('PEXPIRE', session, sessionTTL)
    end
  end

  local version = time .. string.format('%09d', rank) .. tie .. change
  local old = call('GET', pair)
  old = old and (match(old, '^(%d+) ') or '')
  if not old or old < version or (correction and old == version) then
    call('SET', pair, version .. ' ' .. arrival .. ' ' .. ARGV[at + 2] .. text, 'PX', pairTTL)
    written = written + 1
  end
end
answer[#answer + 1] = written
return answer
