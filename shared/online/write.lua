-- Assigns ranks and writes entities; see package online. All of it or nothing.
--
-- KEYS: fs:epoch, then of each event its session's and its user_product's key.
-- ARGV: 1 if there has to be an epoch; then of each event one packed text of digits,
-- see (*batch).add, and the values of the features that are no rank.
local call, sub = redis.call, string.sub

if ARGV[1] == '1' and call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('EMPTY the online store has no epoch')
end
local answer, written = {}, 0
for i = 1, (#KEYS - 1) / 2 do
  local session, pair = KEYS[2 * i], KEYS[2 * i + 1]
  local at = (i - 1) * WIDTH + 2
  local packed = ARGV[at]
  local hash, time, tie, change = sub(packed, 1, 16), sub(packed, 17, 34), sub(packed, 35, 46), sub(packed, 47, 66)
  local known = tonumber(sub(packed, 67, 75))
  local sessionTTL, pairTTL = tonumber(sub(packed, 76, 86)), tonumber(sub(packed, 87, 97))
  local arrival, correction, keep = sub(packed, 98, 111), sub(packed, 112, 112) == '1', sub(packed, 113, 113) == '1'

  local had = call('HMGET', session, hash, 'n', 'v')
  local rank, count, old = had[1] and tonumber(had[1]), had[2] and tonumber(had[2]) or 0, had[3]
  local new = not rank
  if new then
    rank = known > 0 and known or count + 1
  end
  answer[i] = rank
  new = new and keep

  local place = string.format('%09d', rank)
  local version = place .. change
  local newer = not old or old < version or (correction and old == version)
  if new or newer then
    if not newer then
      call('HSET', session, hash, rank, 'n', math.max(count, rank))
    elseif not new then
      call('HSET', session, 'v', version, 't', time, 'a', arrival, SESSION_FIELDS)
    else
      call('HSET', session, hash, rank, 'n', math.max(count, rank), 'v', version, 't', time, 'a', arrival, SESSION_FIELDS)
    end
    if known == 0 or call('PTTL', session) < sessionTTL then
      call('PEXPIRE', session, sessionTTL)
    end
    written = newer and written + 1 or written
  end

  version = time .. place .. tie .. change
  old = call('HGET', pair, 'v')
  if not old or old < version or (correction and old == version) then
    call('HSET', pair, 'v', version, 't', time, 'a', arrival, PAIR_FIELDS)
    call('PEXPIRE', pair, pairTTL)
    written = written + 1
  end
end
answer[#answer + 1] = written
return answer
