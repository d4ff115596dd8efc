PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'CHECK (role = ''client'' OR role = ''vendor'' OR role = ''staff'' OR role = ''admin'')',
    'CHECK (role IN (''client'', ''vendor'', ''staff'', ''admin''))'),
    'CHECK (auth_provider = ''email'' OR auth_provider = ''phone'' OR auth_provider = ''google'')',
    'CHECK (auth_provider IN (''email'', ''phone'', ''google''))')
    WHERE type = 'table' AND name = 'users';
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'CHECK (channel = ''mail'' OR channel = ''sms'' OR channel = ''event'')',
    'CHECK (channel IN (''mail'', ''sms'', ''event''))'),
    'CHECK (state = ''pending'' OR state = ''sent'' OR state = ''dead'' OR state = ''published'')',
    'CHECK (state IN (''pending'', ''sent'', ''dead'', ''published''))')
    WHERE type = 'table' AND name = 'outbox';
CREATE TABLE schema_has_changed (n INTEGER);
DROP TABLE schema_has_changed;
PRAGMA writable_schema = RESET;
