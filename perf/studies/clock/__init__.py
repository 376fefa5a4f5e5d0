"""Is what a plan predicts by the clock kept where the plan is served?"""
