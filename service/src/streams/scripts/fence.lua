-- Put before every script that acts on a shard for its owner.
-- KEYS: fence, stream. ARGV: pipeline id, epoch, token, the sum of the committed numbers that the owner knows to stand here,
-- then the script's own.
-- Answers nil when the fence is the caller's, else what the caller gets: {'fenced', epoch}, {'refused', pipeline id}, or
-- {'raised'}: the fence stood lower (new owner, or a server that was rewound) and was set, or the numbers stand lower (a
-- server that was rewound by less); nothing else was done, for pending entries have to be taken over again first.
-- Leaves in `marks` the highest committed numbers as they stand: of records, dead letters, conflicts.
local marks
local function fenced()
  local held = redis.call('HMGET', KEYS[1], 'pipeline', 'epoch', 'token', 'records', 'deadLetters', 'conflicts')
  marks = {tonumber(held[4] or '0'), tonumber(held[5] or '0'), tonumber(held[6] or '0')}
  if held[1] and held[1] ~= ARGV[1] then return {'refused', held[1]} end
  local there, mine = tonumber(held[2] or '0'), tonumber(ARGV[2])
  if there > mine or (there == mine and held[3] ~= ARGV[3]) then return {'fenced', there} end
  if there < mine then
    redis.call('HSET', KEYS[1], 'pipeline', ARGV[1], 'epoch', ARGV[2], 'token', ARGV[3])
    return {'raised'}
  end
  if marks[1] + marks[2] + marks[3] < tonumber(ARGV[4]) then return {'raised'} end
  return nil
end
