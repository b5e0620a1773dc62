"""Categories, roles and scenes of the faithful mode, by domain of the made world."""

CATEGORIES = {
    "agriculture": "新闻", "automobile": "电商", "education": "百科", "environment": "气候", "film": "影视",
    "finance": "金融", "food": "实体", "history": "百科", "law": "政策", "medicine": "医疗", "shopping": "电商",
    "sport": "新闻", "technology": "电商", "travel": "实体",
}  # fmt: skip

FORMS = {
    "新闻": "title", "电商": "product", "百科": "question", "气候": "claim", "影视": "colloquial", "金融": "question",
    "实体": "question", "政策": "question", "医疗": "colloquial",
}  # fmt: skip
"""The kind of query of each category that occurs, as the published recipe pairs them."""

_TEXT = {
    "agriculture": "农户/问收成 收购商/谈价钱 记者/写报道 合作社社员/等分红 农技员/下田",
    "automobile": "买车的人/挑新车 车主/做保养 试驾编辑/写测评 销售/接待客户 司机/跑长途",
    "education": "家长/给孩子选校 学生/备考报名 老师/找工作 校友/返校 记者/写报道",
    "environment": "环保志愿者/巡护 研究生/写论文 摄影师/拍鸟 村民/打听水质 记者/写报道",
    "film": "影迷/周末看片 影评人/写评论 学生/做作业 发行员/排片 观众/散场以后",
    "finance": "储户/存钱 投资者/挑产品 会计/做报表 分析师/写研报 客户经理/见客户",
    "food": "食客/约朋友吃饭 游客/找馆子 外卖骑手/送餐 厨师/学手艺 上班族/中午点餐",
    "history": "游客/参观遗址 学生/写作业 考古队员/整理资料 馆员/布展 爱好者/查资料",
    "law": "居民/办手续 公务员/写材料 律师/查条文 创业者/申请补贴 老人/到窗口询问",
    "medicine": "患者/看病挂号 家属/陪床 护士/值班 医学生/实习 记者/写报道",
    "shopping": "买家/比价 主妇/添家电 租客/搬家 店主/进货 客服/答疑",
    "sport": "球迷/看比赛 教练/备战 记者/赛后发稿 赞助商/谈合作 学生/聊球赛",
    "technology": "学生/换新机 发烧友/看参数 店员/卖货 老人家属/挑礼物 编辑/写测评",
    "travel": "游客/周末出游 导游/带团 驴友/做攻略 家长/带孩子玩 摄影师/采风",
}

PERSONAS = {key: tuple(tuple(pair.split("/")) for pair in text.split()) for key, text in _TEXT.items()}
"""(role, scene) pairs of each domain."""
