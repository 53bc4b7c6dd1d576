-- Written by `make definitions`: what these migrations make. `doctor` compares it with a database,
-- and psql makes the functions and triggers again, as the owner of the tables.

-- TABLE access_ends: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON access_ends: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_access_ends ON access_ends: PRIMARY KEY (id)
-- TABLE account_events: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON account_events: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN user_id ON account_events: TYPE uuid, DROP NOT NULL, DROP DEFAULT
-- COLUMN actor_id ON account_events: TYPE uuid, DROP NOT NULL, DROP DEFAULT
-- COLUMN kind ON account_events: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN address ON account_events: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN user_agent ON account_events: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN detail ON account_events: TYPE character varying, DROP NOT NULL, DROP DEFAULT
-- COLUMN created_at ON account_events: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- CONSTRAINT fk_account_events_user_id ON account_events: FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
-- CONSTRAINT pk_account_events ON account_events: PRIMARY KEY (id)
-- INDEX ix_account_events_user_id ON account_events: CREATE INDEX ix_account_events_user_id ON public.account_events USING btree (user_id, created_at, id)
-- TABLE api_keys: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON api_keys: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN user_id ON api_keys: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN name ON api_keys: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN hash ON api_keys: TYPE bytea, SET NOT NULL, DROP DEFAULT
-- COLUMN hint ON api_keys: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN scope ON api_keys: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN created_at ON api_keys: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- COLUMN expires_at ON api_keys: TYPE timestamp with time zone, DROP NOT NULL, DROP DEFAULT
-- COLUMN last_used_at ON api_keys: TYPE timestamp with time zone, DROP NOT NULL, DROP DEFAULT
-- CONSTRAINT fk_api_keys_user_id ON api_keys: FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
-- CONSTRAINT pk_api_keys ON api_keys: PRIMARY KEY (id)
-- CONSTRAINT uq_api_keys_hash ON api_keys: UNIQUE (hash)
-- INDEX ix_api_keys_user_id ON api_keys: CREATE INDEX ix_api_keys_user_id ON public.api_keys USING btree (user_id)
-- TABLE identities: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON identities: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN user_id ON identities: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN issuer ON identities: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN subject ON identities: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN email ON identities: TYPE character varying, DROP NOT NULL, DROP DEFAULT
-- COLUMN created_at ON identities: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- CONSTRAINT fk_identities_user_id ON identities: FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
-- CONSTRAINT pk_identities ON identities: PRIMARY KEY (id)
-- CONSTRAINT uq_identities_issuer_subject ON identities: UNIQUE (issuer, subject)
-- INDEX ix_identities_user_id ON identities: CREATE INDEX ix_identities_user_id ON public.identities USING btree (user_id)
-- TABLE refresh_tokens: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN hash ON refresh_tokens: TYPE bytea, SET NOT NULL, DROP DEFAULT
-- COLUMN session_id ON refresh_tokens: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN used_at ON refresh_tokens: TYPE timestamp with time zone, DROP NOT NULL, DROP DEFAULT
-- COLUMN sealed_successor ON refresh_tokens: TYPE bytea, DROP NOT NULL, DROP DEFAULT
-- CONSTRAINT fk_refresh_tokens_session_id ON refresh_tokens: FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE CASCADE
-- CONSTRAINT pk_refresh_tokens ON refresh_tokens: PRIMARY KEY (hash)
-- INDEX ix_refresh_tokens_session_id ON refresh_tokens: CREATE INDEX ix_refresh_tokens_session_id ON public.refresh_tokens USING btree (session_id)
-- TABLE reset_requests: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON reset_requests: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN email ON reset_requests: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN address ON reset_requests: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN user_agent ON reset_requests: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_reset_requests ON reset_requests: PRIMARY KEY (id)
-- TABLE revocations: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON revocations: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN transaction ON revocations: TYPE bigint, SET NOT NULL, SET DEFAULT ((pg_current_xact_id())::text)::bigint
-- COLUMN created_at ON revocations: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- CONSTRAINT pk_revocations ON revocations: PRIMARY KEY (id)
-- INDEX ix_revocations_transaction ON revocations: CREATE INDEX ix_revocations_transaction ON public.revocations USING btree (transaction)
-- TABLE sessions: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON sessions: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN user_id ON sessions: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN scope ON sessions: TYPE character varying, DROP NOT NULL, DROP DEFAULT
-- COLUMN address ON sessions: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN user_agent ON sessions: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN created_at ON sessions: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- COLUMN last_used_at ON sessions: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- COLUMN expires_at ON sessions: TYPE timestamp with time zone, SET NOT NULL, DROP DEFAULT
-- COLUMN authenticated_at ON sessions: TYPE timestamp with time zone, DROP NOT NULL, DROP DEFAULT
-- COLUMN family_hash ON sessions: TYPE bytea, DROP NOT NULL, DROP DEFAULT
-- CONSTRAINT fk_sessions_user_id ON sessions: FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
-- CONSTRAINT pk_sessions ON sessions: PRIMARY KEY (id)
-- INDEX ix_sessions_expires_at ON sessions: CREATE INDEX ix_sessions_expires_at ON public.sessions USING btree (expires_at)
-- INDEX ix_sessions_family_hash ON sessions: CREATE UNIQUE INDEX ix_sessions_family_hash ON public.sessions USING btree (family_hash)
-- INDEX ix_sessions_user_id ON sessions: CREATE INDEX ix_sessions_user_id ON public.sessions USING btree (user_id)
-- TABLE signing_keys: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON signing_keys: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN public_jwk ON signing_keys: TYPE jsonb, SET NOT NULL, DROP DEFAULT
-- COLUMN sealed_private_jwk ON signing_keys: TYPE bytea, SET NOT NULL, DROP DEFAULT
-- COLUMN active_at ON signing_keys: TYPE timestamp with time zone, SET NOT NULL, DROP DEFAULT
-- CONSTRAINT pk_signing_keys ON signing_keys: PRIMARY KEY (id)
-- TABLE users: SET LOGGED, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY, REPLICA IDENTITY DEFAULT, ENABLE TRIGGER ALL
-- COLUMN id ON users: TYPE uuid, SET NOT NULL, DROP DEFAULT
-- COLUMN email ON users: TYPE character varying, SET NOT NULL, DROP DEFAULT
-- COLUMN name ON users: TYPE character varying, DROP NOT NULL, DROP DEFAULT
-- COLUMN password_hash ON users: TYPE character varying, DROP NOT NULL, DROP DEFAULT
-- COLUMN created_at ON users: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- COLUMN updated_at ON users: TYPE timestamp with time zone, SET NOT NULL, SET DEFAULT clock_timestamp()
-- COLUMN email_verified ON users: TYPE boolean, SET NOT NULL, SET DEFAULT false
-- COLUMN is_active ON users: TYPE boolean, SET NOT NULL, SET DEFAULT true
-- COLUMN role ON users: TYPE character varying, SET NOT NULL, SET DEFAULT 'user'::character varying
-- COLUMN deleted_at ON users: TYPE timestamp with time zone, DROP NOT NULL, DROP DEFAULT
-- CONSTRAINT ck_users_role_known ON users: CHECK (((role)::text = ANY ((ARRAY['user'::character varying, 'admin'::character varying])::text[])))
-- CONSTRAINT pk_users ON users: PRIMARY KEY (id)
-- INDEX ix_users_deleted_at ON users: CREATE INDEX ix_users_deleted_at ON public.users USING btree (deleted_at) WHERE (deleted_at IS NOT NULL)
-- INDEX uq_users_email ON users: CREATE UNIQUE INDEX uq_users_email ON public.users USING btree (email) WHERE (deleted_at IS NULL)

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
