-- Returns the number of records and of bytes of an entry. An entry of another program has one.
local function measured(fields)
  local records, bytes = 1, 0
  for i = 1, #fields, 2 do
    bytes = bytes + #fields[i + 1]
    if fields[i] == 'offsets' then
      local first, last = string.match(fields[i + 1], '^(%d+)-(%d+)$')
      if first then records = tonumber(last) - tonumber(first) + 1 end
    end
  end
  return records, bytes
end

-- Returns the number of entries of the next step of a read. Large entries are read four at a time, so that little is read
-- above what is asked for.
local function next_step(entries, bytes)
  if entries > 0 and bytes <= entries * 4096 then return 16 end
  return 4
end
