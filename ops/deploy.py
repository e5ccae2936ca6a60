"""`make deploy`: from a clone to the first dry run, and every upgrade after it.

It moves one environment (a section of samconfig.toml, and the stack of that section) through these states. Each state
is read from where it is, never remembered here, so a run that was broken off anywhere is taken up by the next one.

    state          how it is recognised                      the step that leads on
    -----          --------------------                      ----------------------
    unanswered     samconfig.toml has no parameters          ask: the database (found in RDS), the login, the platform,
                   for this environment                      the alarm address. Without a terminal: an error that names
                                                             what is missing
    answered       the answers are in samconfig.toml, their  show the plan, and go on after a yes. Then secrets, the
                   secrets perhaps not yet in AWS            authorities of RDS (infra/ca), the build
    prepared       what it consists of is there, but the     deploy with the schedule disabled
                   stack lacks it (template or parameters)
    deployed       the stack has template and parameters,    installer (role, schema, rights); dry run; the checklist
                   but the schedule is disabled
    switched on    the same, and the schedule is as          nothing: a run without changes ends here, and succeeds
                   answered

Rules that keep a broken-off run harmless:

  * Nothing is made before the plan was shown and answered with yes. Answers alone change nothing.
  * An answer is kept (samconfig.toml) before anything is made from it. A secret's content never is: its ARN is.
  * The schedule is off from before new code runs until the installer and a dry run have succeeded. The file says what
    the schedule shall be in the end; the disabled state is an override for one deploy and is written nowhere.
  * A failed check leaves the schedule disabled, and says which one, why, and that the same command goes on.
  * A password or token that is typed goes to Secrets Manager, and nowhere else: no file, no argument of a process.

`--plan` prints the steps that a run would take, and makes nothing. ENV=staging is another environment: another section,
another stack, other secrets.
"""
