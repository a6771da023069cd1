r"""Labelled pairs for `math`: the answer that a completion puts in its box, and a reference.

Written for this test; the labels are what a careful reader would say, and each group names what it is about.
"""

RIGHT = [
    # how numbers are written
    ("5", "5"), ("5.0", "5"), (".5", "0.5"), ("005", "5"), ("-0.25", "-.25"), ("−7", "-7"), ("1,234", "1234"),
    ("1234", "1,234"), ("1{,}234{,}567", "1234567"), (r"32,\!348", "32348"), ("2.50", "2.5"), ("7.", "7"),
    (r"1.5 \times 10^5", "150000"), ("2^{10}", "1024"), ("5!", "120"), (r"\binom{6}{2}", "15"), ("3^2", "9"),
    # fractions, decimals, mixed numbers
    (r"\frac{1}{2}", "0.5"), ("0.75", r"\frac34"), (r"\dfrac{3}{4}", r"\tfrac{3}{4}"), ("3/4", r"\frac{3}{4}"),
    (r"\frac{2}{4}", r"\frac{1}{2}"), (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\frac{1}{-2}", r"-\frac12"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"), ("1 1/2", "3/2"), ("1.5", r"1 \frac{1}{2}"), (r"\frac 59", "5/9"),
    ("0.333333", r"\frac13"), (r"\frac{1}{29,\!322}", r"\frac{1}{29322}"), (r"\frac9{19}", r"\frac{9}{19}"),
    # percent, money, units, degrees
    (r"10\%", "10"), ("10", r"10\%"), (r"28 \text{ percent}", r"28\%"), (r"\$5", "5"),
    (r"\$18.90", "18.9"), (r"5 \text{ dollars}", r"\$5"), (r"5\text{ cm}", "5"), (r"15\mbox{ cm}^2", "15"),
    ("10 cm", "10"), (r"12\pi \text{ square units}", r"12\pi"), (r"90^\circ", "90"), ("90", r"90^{\circ}"),
    (r"3 \text{ hours}", "3"), (r"4 \text{ million}", "4{,}000{,}000"), ("2.5 million", "2500000"),
    (r"\frac{270}{7}\text{ degrees}", r"\frac{270}7"), (r"125\textnormal{ miles}", "125"),
    # roots, constants, functions
    (r"\sqrt{8}", r"2\sqrt2"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"), (r"11\sqrt{2}", r"11\sqrt2"),
    (r"\sqrt[3]{27}", "3"), (r"\pi/6", r"\frac{\pi}{6}"), (r"\frac94\pi", r"\frac{9\pi}{4}"), (r"2e", r"2\mathrm{e}"),
    (r"1-\frac{1}{\mathrm{e}}", r"1-\frac{1}{e}"), (r"\sin^2 t + \cos^2 t", "1"), (r"\log_2 8", "3"),
    (r"\sec^2 y", r"\tan^2 y + 1"),
    (r"\sin t", r"\sin{t}"), ("6+9i", "9i + 6"), ("(1+i)^2", "2i"), ("i^2", "-1"), (r"\frac{x^2}{x}", "x"),
    # algebra
    ("(x-1)(x+1)", "x^2-1"), ("p-q", "p - q"), ("-q+p", "p - q"), (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
    ("x^2 + 2x + c", "x^2+2x+c"), ("2(k+1)", "2k+2"), ("6r^2-4r-24", "2(3r^2-2r-12)"), ("x \\cdot y", "xy"),
    # an equation for its value
    ("x=5", "5"), ("5", "x=5"), ("x = 5", "x=5"), ("f(x) = 2x", "2x"), ("y=2x+3", "2x+3"), (r"x \in [1,2)", "[1,2)"),
    ("y = 2x + 3", "2x - y + 3 = 0"), ("(x, y) = (1, 2)", "(1,2)"), (r"k \approx 11", "11"), ("|AB| = 4", "4"),
    ("y = x", "x = y"), (r"0.\bar{3}", r"\frac13"), (r"0.1\dot{6}", r"\frac16"),
    # lists, sets, pairs, intervals, inequalities, matrices
    ("3,1,2", "1,2,3"), (r"2 \text{ and } 3", "2,3"), (r"x=2 \text{ or } x=3", "x=2,3"), (r"\{2,1\}", r"\{1,2\}"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"), ("( 1 , 2 )", "(1,2)"), (r"\left(\frac12, 3\right)", "(0.5,3)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"), ("(2,1),(1,2)", "(1,2),(2,1)"), ("[0, 1)", "[0,1)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)"),
    (r"(3,\infty) \cup (-\infty,2)", r"(-\infty,2)\cup(3,\infty)"),
    (r"x \ge 5", r"5 \leq x"), ("-x > -1", "x < 1"), (r"-2 \leq x \leq 7", r"-2 \le x \le 7"),
    (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"), (r"\emptyset", r"\emptyset"),
    (r"\begin{pmatrix} 0.5 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix}"),
    ("f(2)<f(1)<f(4)", "f(2) < f(1) < f(4)"), ("7:32", "7:32"),
    # text, options, times, bases
    (r"\text{east}", r"\text{East}"), ("Evelyn", r"\text{Evelyn}"), (r"\mbox{Saturday}", r"\text{Saturday}"),
    ("C", r"\text{(C)}"), (r"\textbf{(C)}", r"\text{C}"), ("3:15", r"3:15 \text{ p.m.}"), ("12:00", "12:00"),
    (r"\text{no solution}", r"\text{No solution}"), ("2516_8", "2516_{8}"), ("2516", "2516_8"), ("odd", r"\text{odd}"),
    # signs with a space, Unicode, other spellings
    ("- 7", "-7"), ("-1.5", "- 1.5"), ("- 2^3", "-8"), ("3²", "9"), ("√2", r"\sqrt{2}"), ("½", "0.5"), ("3½", "3.5"),
    ("∞", r"\infty"), ("2π", r"2\pi"), ("x² + 1", "x^2+1"), ("5√3", r"5\sqrt{3}"), ("x₁", "x_1"),
    ("x ≥ 5", r"x \ge 5"),
    ("1e-3", "0.001"), ("7=x", "7"), (r"\text{(a) } 3/4", "0.75"), ("10weeks", "10"), ("`5`", "5"),
    (r"12 \bmod 5", "2"),
    (r"\sin(90^\circ - x)", r"\cos x"), (r"\textbf{(B)}\ 3x = 7", r"\text{(B)}"), ("3 + 2 = 5", "5"),
    ("fifty-two", "52"),
    (r"\frac{ q_{0} }{ \sqrt{2 C L} }", r"I_{\max }=\frac{q_{0}}{\sqrt{2 L C}}"), (r"\text{A,B}", r"\text{A, B}"),
]  # fmt: skip

WRONG = [
    # a calculation with infinity beside a list
    (r"2.3\infty^2", "3,5"), (r"\sqrt{\infty}\pi 5", "3,12"), (r"2.3 ∞ ²", r"\{1,2\}"), (r"1.5\infty", r"3,\infty"),

    ("4", "5"), ("-5", "5"), ("50", "5"), ("1,2345", "12345"), ("32, 349", "32349"), ("23", "2 3"), ("2 3", "23"),
    ("0.33", r"\frac13"), ("0.3334", r"\frac13"), (r"\frac{1}{3}", "0.3"), ("1 1/2", "11/2"),
    (r"1\frac12", r"\frac{11}{2}"),
    (r"2^{-99}", r"\frac{1}{2^{98}}"), (r"\frac{1}{2004!}", r"\frac{1}{2006!}"), ("0.0000001", "0.0000002"),
    (r"\frac{2}{1}", r"\frac{1}{2}"), ("28", "0.28"), ("28", "28/100"), ("1/0", "5"), ("", "5"), (r"\text{}", "5"),
    (r"4\sqrt{2}", "4"), (r"\sqrt{4\cdot 2}", "4"), ("3x", "3"), ("x+3", "3"), ("x + 3", "3"),
    ("2", r"\frac{1+\sqrt5}{2}"),
    (r"1+\frac{1}{\mathrm{e}}", r"1-\frac{1}{\mathrm{e}}"), ("3.14", r"\pi"), (r"12\pi", "12"), ("6-9i", "9i+6"),
    ("x^2-2", "x^2-1"), ("(x+1)^2", "x^2+1"), ("q-p", "p-q"), ("a+b", "a+b+c"), ("x^2+2x", "x^2+2x+c"), ("2n", "2m"),
    ("(2,1)", "(1,2)"), ("[1,2]", "(1,2)"), ("(1,2]", "[1,2)"), ("1,2", "1,2,3"),
    (r"\{0,1\}", "(0,1)"), (r"(1, 2)", r"\{1, 2\}"), (r"\text{(C) }12", r"\text{(B) }12"), ("0,3,-1,4", "0,1,2,4"),
    ("5", "3,5"),
    ("(10,0),(0,0)", "(10,0)"), (r"\{1,2,3\}", r"\{1,2\}"), (r"1+\sqrt2", r"1 \pm \sqrt2"), ("x<3", "x>3"),
    (r"x\le 3", "x<3"),
    (r"(-\infty,2)", r"(-\infty,2]"), ("f(1)<f(2)<f(4)", "f(2) < f(1) < f(4)"), ("x=3", "y^2=3"), ("0", "a+3z=0"),
    (r"\begin{pmatrix}1\\3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("y=2x", "y=3x"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"50\%", "0.5"), ("0.5", r"50\%"), (r"\text{west}", r"\text{east}"), ("D", r"\text{(C)}"),
    (r"\text{even}", r"\text{odd}"), ("1:00", "12:00"),
    ("2516_7", "2516_8"), ("1_6", "1_7"), ("I do not know", "5"), (r"\text{none}", "0"),
    ("2515", "2516_8"), ("2 pi", "2"), ("3 xy", "3"), ("2i", "2"), ("(1+i)^2", "-2i"), ("y", "x"),
    # a sign that is lost, part of an expression, several answers
    ("- 2", "2"), ("2", "- 2"), ("- 2 - 3", "-1"), ("3x=12", "12"), ("2x+1=4", "4"), ("7=4", "4"), ("2^3", "2"),
    ("4 pi", "4"),
    (r"\text{at least }4", "4"), ("at least 4", "4"), ("less than 4", "4"), (r"\neq 4", "4"), ("≥ 4", "4"),
    ("5 + 3", "5"),
    (r"4\text{ and some more}", "4"), (r"\text{Prime factors } = 2, 3, 4", "4"), (r"3\text{ or maybe 12}", "12"),
    (r"3\text{ or perhaps $12$}", "12"), (r"3\text{ million (or 12)}", "12"), (r"3\text{ or }12\text{ or }5", "12"),
    (r"3 \text{ apples, } 12 \text{ pears}", "12"), (r"3 \text{ apples, } 12 \text{ pears}", "3"), ("2 3", "3"),
    ("2 3", "2.3"),
    ("(2) 3", "3"), ("2 (3)", "3"), ("2 . 3", "2.3"), ("2% 3", "3"), (r"3 \to 8 \to 7", "3"),
    (r"3 \approx 8 \approx 7", "3"),
    (r"3 \mid 8 \mid 7", "3"), ("3 & 8 & 7", "3"), (r"3 \equiv 8", "3"), (r"3\cup 8\cup 7", "3"), (r"3 \sim 8", "3"),
    (r"3 \setminus 8", "3"), (r"3\Rightarrow 8\Rightarrow 7", "7"), ("5-10", "5"), ("5-10", "10"),
    # letters are not units, Unicode is not dropped, and what differs in name, case, scale, time or set
    ("12", "12t"), ("12", "12m"), ("12", "12s"), ("12t", "12s"), ("x^2t", "x^2"), ("3²", "3"), ("½", "2"),
    ("√2", "2"), ("∞", "0"),
    ("x²", "x"), ("3½", "3"), ("5√3", "5"), ("x₁", "x"), ("x=3", "y=3"), ("5 million", "5 thousand"),
    ("5 million", "5"), ("y = x", "y = 2"),
    ("3:15 am", "3:15 pm"), ("1.2", "1,2"), (r"\frac{dy}{dx}", "0"), (r"\{x|x=3k+1\}", r"\{x|x=3k\}"), ("x+B", "x+b"),
]  # fmt: skip
