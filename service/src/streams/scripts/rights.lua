#!lua flags=no-writes
-- Asks which commands the user may run on which keys; runs none of them.
-- ARGV: number of keys, keys, then commands whose words are separated by spaces; the word {key} stands for each key.
-- Returns pairs of a command's position and a key's position, 0 for a command without one, for each that is refused.
local keys, refused = tonumber(ARGV[1]), {}
for at = keys + 2, #ARGV do
  local has_key = string.find(ARGV[at], '{key}', 1, true)
  for index = has_key and 1 or 0, has_key and keys or 0 do
    local words = {}
    for word in string.gmatch(ARGV[at], '%S+') do
      words[#words + 1] = word == '{key}' and ARGV[index + 1] or word
    end
    if not redis.acl_check_cmd(unpack(words)) then
      refused[#refused + 1] = at - keys - 1
      refused[#refused + 1] = index
    end
  end
end
return refused
