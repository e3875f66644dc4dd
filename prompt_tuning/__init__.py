"""prompt_tuning"""
