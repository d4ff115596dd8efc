-- The sliding window of services/limits.rs: KEYS are rules, ARGV their window (µs) and limit.
-- Returns 0 after counting the request against every rule, else the µs to wait; then for each rule how
-- much remains, and the µs until its window ends.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local longest = 0
local counted = {}
for n, key in ipairs(KEYS) do
  local per, limit = tonumber(ARGV[2 * n - 1]), tonumber(ARGV[2 * n])
  local known = redis.call('HMGET', key, 'index', 'current', 'previous')
  local index = math.floor(now / per)
  local current, previous = 0, 0
  if known[1] then
    local age = index - tonumber(known[1])
    if age <= 0 then
      index = tonumber(known[1])
      current, previous = tonumber(known[2]), tonumber(known[3])
    elseif age == 1 then
      previous = tonumber(known[2])
    end
  end
  local elapsed = now % per
  local wait
  local function share(older, room)
    if older <= room then return 0 end
    return 1 - room / older
  end
  if current + 1 > limit then
    wait = per - elapsed + share(current, limit - 1) * per
  else
    wait = share(previous, limit - 1 - current) * per - elapsed
  end
  if wait > longest then longest = wait end
  counted[n] = { key, index, current, previous, per, limit, elapsed }
end
local answer = { math.ceil(longest) }
local function add_left(c, current)
  local remaining = math.floor(c[6] - current - c[4] * (1 - c[7] / c[5]))
  answer[#answer + 1] = math.max(remaining, 0)
  answer[#answer + 1] = math.ceil(c[5] - c[7])
end
if longest > 0 then
  for _, c in ipairs(counted) do add_left(c, c[3]) end
  return answer
end
for _, c in ipairs(counted) do
  redis.call('HSET', c[1], 'index', string.format('%.0f', c[2]), 'current', c[3] + 1, 'previous', c[4])
  redis.call('PEXPIRE', c[1], math.ceil(2 * c[5] / 1000))
  add_left(c, c[3] + 1)
end
return answer
