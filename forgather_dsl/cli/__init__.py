"""The command line: each verb parses, calls one function and prints. Reading verbs import no torch, and rich only for a terminal."""
