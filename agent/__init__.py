"""One attempt as a LangGraph state machine, and the loop, the ledger and the journal around it."""
