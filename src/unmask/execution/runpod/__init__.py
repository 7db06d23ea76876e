"""Pods of RunPod: its API (`wire`, `asking`, `client`), which pod to take (`choosing`, `creating`), until it answers
(`reaching`), and its end (`ending`, `timer`).

Nothing here was tried on RunPod itself: shapes are those of its documentation, named where they are used.
"""
