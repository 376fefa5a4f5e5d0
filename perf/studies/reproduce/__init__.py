"""The paper's claims on glyphs, data of our own: plans chosen on one part, judged once on another."""
