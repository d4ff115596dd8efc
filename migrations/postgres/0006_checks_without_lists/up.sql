-- PostgreSQL keeps a list as an array; only SQLite has something to gain here.
SELECT 1;
