-- The sliding window of services/limits.rs, for groups of requests that come at once. ARGV has of each group how many
-- requests it is of, how many more of them are wanted ahead, and how many rules it is under, then of each rule its
-- window (µs) and limit; KEYS are the rules. A request is counted against all rules of its group or, when one is
-- exhausted, against none; ahead, no more are counted than an 80th of what remains then, and less than 16 not at all.
-- Returns of each group how many were counted, how many µs the others are to wait, and how many were counted ahead;
-- then of each rule how much remains, and the µs until its window ends.
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

local function remaining(rule)
  local w = rule.window
  return math.max(math.floor(rule.limit - w.current - w.previous * (1 - w.elapsed / w.per)), 0)
end

local argument, key = 1, 1
while argument <= #ARGV do
  local requests, wanted = tonumber(ARGV[argument]), tonumber(ARGV[argument + 1])
  local count = tonumber(ARGV[argument + 2])
  local rules = {}
  for n = 1, count do
    local per, limit = tonumber(ARGV[argument + 1 + 2 * n]), tonumber(ARGV[argument + 2 + 2 * n])
    rules[n] = { window = window(KEYS[key], per), limit = limit }
    key = key + 1
  end
  argument = argument + 3 + 2 * count
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
  local ahead = admitted == requests and wanted or 0
  for _, rule in ipairs(rules) do
    ahead = math.min(ahead, math.floor(remaining(rule) / 80))
  end
  if ahead < 16 then ahead = 0 end
  for _, rule in ipairs(rules) do
    rule.window.current = rule.window.current + ahead
  end
  answer[#answer + 1] = admitted
  answer[#answer + 1] = math.ceil(longest)
  answer[#answer + 1] = ahead
  for _, rule in ipairs(rules) do
    answer[#answer + 1] = remaining(rule)
    answer[#answer + 1] = math.ceil(rule.window.per - rule.window.elapsed)
  end
end

for name, w in pairs(windows) do
  if w.counted > 0 then
    redis.call('HSET', name, 'index', string.format('%.0f', w.index), 'current', w.current, 'previous', w.previous)
    redis.call('PEXPIRE', name, math.ceil(2 * w.per / 1000))
  end
end
return answer
