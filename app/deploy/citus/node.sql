-- Makes a database a node of a cluster of Citus. A superuser runs this on each server, after
-- app/deploy/roles.sql and before `citus_add_node`; and again when a password has changed.
--
--   POSTGRES_PASSWORD=… OWNER_PASSWORD=… SERVICE_PASSWORD=… psql --file app/deploy/citus/node.sql …

\set ON_ERROR_STOP on
\getenv postgres_password POSTGRES_PASSWORD
\getenv owner_password OWNER_PASSWORD
\getenv service_password SERVICE_PASSWORD

CREATE EXTENSION IF NOT EXISTS citus;
-- The passwords with which the nodes connect to each other, quoted for libpq.
DELETE FROM pg_dist_authinfo;
INSERT INTO pg_dist_authinfo (nodeid, rolename, authinfo)
SELECT 0, name, 'password=''' || replace(replace(password, '\', '\\'), '''', '\''') || ''''
FROM (VALUES (current_user, :'postgres_password'), ('tessera_owner', :'owner_password'),
    ('tessera_service', :'service_password')) AS roles (name, password);
