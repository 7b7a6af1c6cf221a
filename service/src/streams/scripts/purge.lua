#!lua flags=allow-oom
-- Removes a stream and what is beside it, if both are the pipeline's. KEYS: beside, stream. ARGV: pipeline id, sink or
-- '' for an input stream, the id of another pipeline whose streams may be removed, too, or ''.
-- Answers {'ok', entries removed}, {'other', pipeline id}, or {'unknown'}: nothing tells whose a sink's stream is.
local held = redis.call('HMGET', KEYS[1], 'pipeline', 'sink')
if held[1] and held[1] ~= ARGV[1] and held[1] ~= ARGV[3] then return {'other', held[1]} end
if ARGV[2] ~= '' and (not held[1] or held[2] ~= ARGV[2]) then return {'unknown'} end
local entries = redis.call('XLEN', KEYS[2])
redis.call('UNLINK', KEYS[1], KEYS[2])
return {'ok', entries}
