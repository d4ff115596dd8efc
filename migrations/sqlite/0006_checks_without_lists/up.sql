-- SQLite makes a table for a list of three and more, for each row that is checked against it. The same conditions without
-- lists, as https://www.sqlite.org/lang_altertable.html#otheralter has it for constraints, but that a table that comes
-- and goes changes the schema's version. Where somebody has spelled a condition otherwise, it stays as it is.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'CHECK (role IN (''client'', ''vendor'', ''staff'', ''admin''))',
    'CHECK (role = ''client'' OR role = ''vendor'' OR role = ''staff'' OR role = ''admin'')'),
    'CHECK (auth_provider IN (''email'', ''phone'', ''google''))',
    'CHECK (auth_provider = ''email'' OR auth_provider = ''phone'' OR auth_provider = ''google'')')
    WHERE type = 'table' AND name = 'users';
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'CHECK (channel IN (''mail'', ''sms'', ''event''))',
    'CHECK (channel = ''mail'' OR channel = ''sms'' OR channel = ''event'')'),
    'CHECK (state IN (''pending'', ''sent'', ''dead'', ''published''))',
    'CHECK (state = ''pending'' OR state = ''sent'' OR state = ''dead'' OR state = ''published'')')
    WHERE type = 'table' AND name = 'outbox';
-- Whoever has read the schema reads it again.
CREATE TABLE schema_has_changed (n INTEGER);
DROP TABLE schema_has_changed;
PRAGMA writable_schema = RESET;
