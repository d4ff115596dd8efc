-- The sliding window of services/limits.rs, for groups of requests that come at once. ARGV has of each group how many
-- requests it is of and how many rules it is under, then of each rule its window (µs) and limit; KEYS are the rules.
-- A request is counted against all rules of its group or, when one is exhausted, against none. Returns of each group
-- how many were counted and how many µs the others are to wait; then of each rule how much remains, and the µs until
-- its window ends.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local windows = {}
local answer = {}

local function window(key, per)
  local found = windows[key]
  if found then return found end
  local known = redis.call('HMGET', key, 'index', 'current', 'previous')
  found = { per = per, index = math.floor(now / per), current = 0, previous = 0, elapsed = now % per, counted = 0 }
  if known[1] then
    local age = found.index - tonumber(known[1])
    if age <= 0 then
      found.index = tonumber(known[1])
      found.current, found.previous = tonumber(known[2]), tonumber(known[3])
    elseif age == 1 then
      found.previous = tonumber(known[2])
    end
  end
  windows[key] = found
  return found
end

local function share(older, room)
  if older <= room then return 0 end
  return 1 - room / older
end

local function wait(w, limit)
  if w.current + 1 > limit then
    return w.per - w.elapsed + share(w.current, limit - 1) * w.per
  end
  return share(w.previous, limit - 1 - w.current) * w.per - w.elapsed
end

local argument, key = 1, 1
while argument <= #ARGV do
  local requests, count = tonumber(ARGV[argument]), tonumber(ARGV[argument + 1])
  local rules = {}
  for n = 1, count do
    local per, limit = tonumber(ARGV[argument + 2 * n]), tonumber(ARGV[argument + 2 * n + 1])
    rules[n] = { window = window(KEYS[key], per), limit = limit }
    key = key + 1
  end
  argument = argument + 2 + 2 * count
  local admitted, longest = 0, 0
  while admitted < requests do
    for _, rule in ipairs(rules) do
      local needed = wait(rule.window, rule.limit)
      if needed > longest then longest = needed end
    end
    if longest > 0 then break end
    for _, rule in ipairs(rules) do
      rule.window.current = rule.window.current + 1
      rule.window.counted = rule.window.counted + 1
    end
    admitted = admitted + 1
  end
  answer[#answer + 1] = admitted
  answer[#answer + 1] = math.ceil(longest)
  for _, rule in ipairs(rules) do
    local w = rule.window
    local remaining = math.floor(rule.limit - w.current - w.previous * (1 - w.elapsed / w.per))
    answer[#answer + 1] = math.max(remaining, 0)
    answer[#answer + 1] = math.ceil(w.per - w.elapsed)
  end
end

for name, w in pairs(windows) do
  if w.counted > 0 then
    redis.call('HSET', name, 'index', string.format('%.0f', w.index), 'current', w.current, 'previous', w.previous)
    redis.call('PEXPIRE', name, math.ceil(2 * w.per / 1000))
  end
end
return answer
