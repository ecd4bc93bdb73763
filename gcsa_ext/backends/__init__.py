"""TODO placeholder"""
