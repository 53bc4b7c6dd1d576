-- Written by `make definitions`: what these migrations make beside tables. `doctor` compares it
-- with a database, and psql makes it again, as the owner of the tables.

-- FUNCTION revoke_deleted()
CREATE OR REPLACE FUNCTION public.revoke_deleted()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    INSERT INTO revocations (id) SELECT id FROM gone ON CONFLICT DO NOTHING;
    PERFORM pg_notify('access', '') WHERE EXISTS (SELECT FROM gone);
    RETURN NULL;
END $function$
;

-- FUNCTION end_sessions()
CREATE OR REPLACE FUNCTION public.end_sessions()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    DELETE FROM sessions WHERE user_id = NEW.id;
    RETURN NULL;
END $function$
;

-- TRIGGER revoke ON users
CREATE OR REPLACE TRIGGER revoke AFTER DELETE ON public.users REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION revoke_deleted()
;

-- TRIGGER revoke ON sessions
CREATE OR REPLACE TRIGGER revoke AFTER DELETE ON public.sessions REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION revoke_deleted()
;

-- TRIGGER revoke ON api_keys
CREATE OR REPLACE TRIGGER revoke AFTER DELETE ON public.api_keys REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION revoke_deleted()
;

-- TRIGGER end_sessions ON users
CREATE OR REPLACE TRIGGER end_sessions AFTER UPDATE OF role, is_active ON public.users FOR EACH ROW WHEN ((((old.role)::text <> (new.role)::text) OR (old.is_active > new.is_active))) EXECUTE FUNCTION end_sessions()
;
