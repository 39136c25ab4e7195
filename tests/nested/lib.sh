# Helpers for scripts in dom0
