"""Networks of a part of another: cut, halved at the top, drawn like it; and the CBR family."""
