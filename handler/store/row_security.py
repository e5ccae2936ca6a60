"""Row-level security: a row that a policy hides must not be taken for one that is gone."""

from handler.errors import RowSecurityError
from handler.store.tables import Rights
from handler.store.transaction import Transaction

REMEDIES = (
    "give the role BYPASSRLS (ALTER ROLE ... BYPASSRLS), or on each of these tables a policy of its own"
    " (CREATE POLICY ... TO ... USING (true) WITH CHECK (true)) beside which no restrictive one applies"
)

# The tables and commands for which row-level security applies to the role, except where a policy lets every row
# through. In a policy for ALL or UPDATE without WITH CHECK, PostgreSQL uses USING instead.
_HIDDEN = """
WITH used AS (
    SELECT name, command, to_regclass(located) AS relation, current_user AS role
    FROM unnest(CAST(:tables AS text[]), CAST(:located AS text[]), CAST(:commands AS text[]))
         AS used (name, located, command)
), applied AS (
    SELECT used.name, used.command, polpermissive AS permissive,
           pg_get_expr(polqual, polrelid) AS reads,
           pg_get_expr(COALESCE(polwithcheck, polqual), polrelid) AS writes
    FROM used JOIN pg_policy ON polrelid = relation
    WHERE polcmd IN ('*', CASE command WHEN 'SELECT' THEN 'r' WHEN 'INSERT' THEN 'a' WHEN 'UPDATE' THEN 'w'
                                       WHEN 'DELETE' THEN 'd' END)
      AND EXISTS (SELECT FROM unnest(polroles) AS granted (role)
                  WHERE CASE WHEN granted.role = 0 THEN true ELSE pg_has_role(granted.role, 'USAGE') END)
), open AS (
    SELECT name, command, bool_and(permissive) AS only_permissive,
           bool_or(permissive AND reads = 'true') AS all_read, bool_or(permissive AND writes = 'true') AS all_written
    FROM applied GROUP BY name, command
)
SELECT name, command, role FROM used LEFT JOIN open USING (name, command)
WHERE row_security_active(relation)
  AND (only_permissive AND (command = 'INSERT' OR all_read) AND (command IN ('SELECT', 'DELETE') OR all_written))
      IS NOT TRUE
ORDER BY name, command
"""


def require_every_row(transaction: Transaction, rights: Rights) -> None:
    """Raise RowSecurityError if a policy could hide a row of the tables that the transaction uses these rights on."""
    used = sorted({(table, right) for table, _, right in rights})
    hidden = transaction.run(
        _HIDDEN,
        tables=[table for table, _ in used],
        located=[transaction.located(table) for table, _ in used],
        commands=[right for _, right in used],
    )
    if hidden:
        what = ", ".join(f"{command} on {table}" for table, command, _ in hidden)
        raise RowSecurityError(f"row-level security may hide rows from the role {hidden[0][2]} ({what}): {REMEDIES}")
