-- Who logs in: the service as a member of ledger_app, an auditor as a member of ledger_audit.  To be run as a
-- superuser, or with CREATEROLE, after `ledger migrate --roles`; and again to change a password.
--
--   psql -d ledger -v service_password=… -v auditor_password=… -f logins.sql
\set ON_ERROR_STOP on
SELECT 'CREATE ROLE ledger_service' WHERE to_regrole('ledger_service') IS NULL \gexec
SELECT 'CREATE ROLE ledger_auditor' WHERE to_regrole('ledger_auditor') IS NULL \gexec
ALTER ROLE ledger_service LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'service_password';
ALTER ROLE ledger_auditor LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'auditor_password';
GRANT ledger_app TO ledger_service;
GRANT ledger_audit TO ledger_auditor;
