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
