-- Put before every script that acts on a shard for its owner.
-- KEYS: fence, stream. ARGV: pipeline id, epoch, token, the sum of the committed numbers that the owner knows to stand here,
-- then the script's own.
-- Answers nil when the fence is the caller's, else what the caller gets: {'fenced', epoch}, {'refused', pipeline id}, or
-- {'raised'}: the fence stood lower (new owner, or a server that went back) and was set, or the numbers stand lower (a
-- server that went back by less); nothing else was done, for pending entries have to be taken over anew first.
local function fenced()
  local held = redis.call('HMGET', KEYS[1], 'pipeline', 'epoch', 'token')
  if held[1] and held[1] ~= ARGV[1] then return {'refused', held[1]} end
  local there, mine = tonumber(held[2] or '0'), tonumber(ARGV[2])
  if there > mine or (there == mine and held[3] ~= ARGV[3]) then return {'fenced', there} end
  if there < mine then
    redis.call('HSET', KEYS[1], 'pipeline', ARGV[1], 'epoch', ARGV[2], 'token', ARGV[3])
    return {'raised'}
  end
  local sum = 0
  for _, mark in ipairs(redis.call('HMGET', KEYS[1], 'records', 'deadLetters', 'conflicts')) do
    sum = sum + tonumber(mark or '0')
  end
  if sum < tonumber(ARGV[4]) then return {'raised'} end
  return nil
end
