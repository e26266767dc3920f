"""SHOW: what people see. Only this room knows Rich (consoles) and Jinja2 (pages).

Reading order: `console` (the two streams, messages and errors), `tables`, `progress`;
then a file for each thing that is shown: `pruned`, `shrunk`, `tree`, `listing`,
`comparison`, `verification`, `difference`; and `page`, the reports as a page of HTML.
"""
